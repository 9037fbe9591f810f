# A network, filtered twice: one group holds its rules inline, the other has separate rules. Behind it a machine.

terraform {
  required_providers {
    azurerm = { source = "hashicorp/azurerm" }
  }
}

provider "azurerm" {
  features {}
  resource_provider_registrations = "core"
}

variable "ssh_source" {
  description = "who may reach SSH"
  type        = string
  default     = "203.0.113.7"
}

variable "tags" {
  description = "tags of everything that has some"
  type        = map(string)
  default     = {}
}

variable "group" {
  description = "the resource group"
  type        = string
  default     = "terraform"
}

resource "azurerm_resource_group" "it" {
  name     = var.group
  location = "West Europe"
  tags     = var.tags
}

resource "azurerm_virtual_network" "it" {
  name                = "main"
  resource_group_name = azurerm_resource_group.it.name
  location            = azurerm_resource_group.it.location
  address_space       = ["10.0.0.0/16"]
  tags                = var.tags
}

resource "azurerm_subnet" "it" {
  name                 = "web"
  resource_group_name  = azurerm_resource_group.it.name
  virtual_network_name = azurerm_virtual_network.it.name
  address_prefixes     = ["10.0.1.0/24"]
}

# The outer filter, with all its rules inline.
resource "azurerm_network_security_group" "inline" {
  name                = "inline"
  resource_group_name = azurerm_resource_group.it.name
  location            = azurerm_resource_group.it.location
  tags                = var.tags

  security_rule {
    name                       = "ssh"
    description                = "from the office"
    priority                   = 200
    direction                  = "Inbound"
    access                     = "Allow"
    protocol                   = "Tcp"
    source_port_range          = "*"
    source_address_prefix      = var.ssh_source
    destination_port_range     = "22"
    destination_address_prefix = "*"
  }

  security_rule {
    name                         = "web"
    priority                     = 210
    direction                    = "Inbound"
    access                       = "Allow"
    protocol                     = "*"
    source_port_ranges           = ["1024-65535"]
    source_address_prefixes      = ["198.51.100.0/24", "203.0.113.0/24"]
    destination_port_ranges      = ["443", "8000-8080"]
    destination_address_prefixes = ["10.0.1.0/24"]
  }
}

resource "azurerm_subnet_network_security_group_association" "it" {
  subnet_id                 = azurerm_subnet.it.id
  network_security_group_id = azurerm_network_security_group.inline.id
}

# The inner filter, without rules of its own.
resource "azurerm_network_security_group" "separate" {
  name                = "separate"
  resource_group_name = azurerm_resource_group.it.name
  location            = azurerm_resource_group.it.location
  tags                = var.tags
}

resource "azurerm_network_security_rule" "ssh" {
  name                        = "ssh"
  resource_group_name         = azurerm_resource_group.it.name
  network_security_group_name = azurerm_network_security_group.separate.name
  priority                    = 200
  direction                   = "Inbound"
  access                      = "Allow"
  protocol                    = "Tcp"
  source_port_range           = "*"
  source_address_prefixes     = [var.ssh_source]
  destination_port_range      = "22"
  destination_address_prefix  = "*"
}

resource "azurerm_network_security_rule" "web" {
  name                                       = "web"
  resource_group_name                        = azurerm_resource_group.it.name
  network_security_group_name                = azurerm_network_security_group.separate.name
  priority                                   = 210
  direction                                  = "Inbound"
  access                                     = "Allow"
  protocol                                   = "Tcp"
  source_port_range                          = "*"
  source_address_prefix                      = "Internet"
  destination_port_range                     = "443"
  destination_application_security_group_ids = [azurerm_application_security_group.web.id]
}

resource "azurerm_application_security_group" "web" {
  name                = "web"
  resource_group_name = azurerm_resource_group.it.name
  location            = azurerm_resource_group.it.location
}

resource "azurerm_route_table" "it" {
  name                = "routes"
  resource_group_name = azurerm_resource_group.it.name
  location            = azurerm_resource_group.it.location

  route {
    name           = "nowhere"
    address_prefix = "192.0.2.0/24"
    next_hop_type  = "None"
  }
}

resource "azurerm_subnet_route_table_association" "it" {
  subnet_id      = azurerm_subnet.it.id
  route_table_id = azurerm_route_table.it.id
}

resource "azurerm_public_ip" "it" {
  name                = "web-1"
  resource_group_name = azurerm_resource_group.it.name
  location            = azurerm_resource_group.it.location
  allocation_method   = "Static"
  sku                 = "Standard"
  tags                = var.tags
}

resource "azurerm_network_interface" "it" {
  name                = "web-1"
  resource_group_name = azurerm_resource_group.it.name
  location            = azurerm_resource_group.it.location
  tags                = var.tags

  ip_configuration {
    name                          = "internal"
    subnet_id                     = azurerm_subnet.it.id
    private_ip_address_allocation = "Dynamic"
    public_ip_address_id          = azurerm_public_ip.it.id
  }
}

resource "azurerm_network_interface_security_group_association" "it" {
  network_interface_id      = azurerm_network_interface.it.id
  network_security_group_id = azurerm_network_security_group.separate.id
}

resource "azurerm_network_interface_application_security_group_association" "it" {
  network_interface_id          = azurerm_network_interface.it.id
  application_security_group_id = azurerm_application_security_group.web.id

  # Both are properties of the interface, and the provider does not keep one from undoing the other.
  depends_on = [azurerm_network_interface_security_group_association.it]
}

resource "azurerm_linux_virtual_machine" "it" {
  name                            = "web-1"
  resource_group_name             = azurerm_resource_group.it.name
  location                        = azurerm_resource_group.it.location
  size                            = "Standard_B2s"
  admin_username                  = "azureuser"
  admin_password                  = "not-a-secret-1"
  disable_password_authentication = false
  network_interface_ids           = [azurerm_network_interface.it.id]
  tags                            = var.tags

  os_disk {
    caching              = "ReadWrite"
    storage_account_type = "Standard_LRS"
  }

  source_image_reference {
    publisher = "Canonical"
    offer     = "ubuntu-24_04-lts"
    sku       = "server"
    version   = "latest"
  }

  depends_on = [
    azurerm_network_interface_security_group_association.it,
    azurerm_subnet_network_security_group_association.it,
  ]
}

data "azurerm_virtual_machine" "it" {
  name                = azurerm_linux_virtual_machine.it.name
  resource_group_name = azurerm_resource_group.it.name
}

output "public_ip" {
  value = azurerm_public_ip.it.ip_address
}

output "private_ip" {
  value = azurerm_network_interface.it.private_ip_address
}
