//! How a client finds this cloud: `/metadata/endpoints` and openid configuration, all at the address it called.

use serde_json::{Value, json};

use crate::http::{Call, Reply};

/// The cloud's endpoints, in the shape of the api-version: a list up to 2020, one object since.
pub(crate) fn endpoints(call: &Call) -> Reply {
    let base = call.base.as_str();
    let version = call.query("api-version").unwrap_or("2022-09-01");
    if version.starts_with("2015") {
        return Reply::ok(json!({
            "galleryEndpoint": format!("{base}/"), "graphEndpoint": format!("{base}/"),
            "portalEndpoint": format!("{base}/"), "graphAudience": format!("{base}/"),
            "authentication": {"loginEndpoint": format!("{base}/"), "audiences": [format!("{base}/")]},
        }));
    }
    let cloud = cloud(base);
    if version < "2021" { Reply::ok(json!([cloud])) } else { Reply::ok(cloud) }
}

/// Clients take any other tenant than `common` for an Azure Stack, and refuse it.
fn cloud(base: &str) -> Value {
    let at = |path: &str| format!("{base}/{path}");
    json!({
        "name": "Simulated", "portal": at("portal"), "resourceManager": format!("{base}/"),
        "authentication": {
            "loginEndpoint": format!("{base}/"), "identityProvider": "AAD", "tenant": "common",
            "audiences": [base, "https://management.core.windows.net/", "https://management.azure.com/"],
        },
        "graph": format!("{base}/"), "graphAudience": format!("{base}/"),
        "microsoftGraphResourceId": format!("{base}/"), "media": base, "batch": at("batch"),
        "gallery": format!("{base}/"), "sqlManagement": at("sql"), "activeDirectoryDataLake": at("lake"),
        "vmImageAliasDoc": at("aliases.json"), "logAnalyticsResourceId": base, "appInsightsResourceId": base,
        "appInsightsTelemetryChannelResourceId": base, "attestationResourceId": base,
        "synapseAnalyticsResourceId": base, "ossrDbmsResourceId": base, "managedHsmResourceId": base,
        "suffixes": {
            "storage": "core.simulated.example", "keyVaultDns": "vault.simulated.example",
            "sqlServerHostname": "database.simulated.example", "acrLoginServer": "azurecr.simulated.example",
            "azureDataLakeStoreFileSystem": "lake.simulated.example",
            "azureDataLakeAnalyticsCatalogAndJob": "analytics.simulated.example",
            "azureFrontDoorEndpointSuffix": "azurefd.simulated.example", "attestationEndpoint": "attest.simulated.example",
            "mysqlServerEndpoint": "mysql.simulated.example", "postgresqlServerEndpoint": "postgres.simulated.example",
            "mariadbServerEndpoint": "mariadb.simulated.example", "mhsmDns": "managedhsm.simulated.example",
            "synapseAnalytics": "synapse.simulated.example", "storageSyncEndpointSuffix": "afs.simulated.example",
        },
    })
}

/// `/{tenant}/v2.0/.well-known/openid-configuration`.
pub(crate) fn openid(call: &Call, tenant: &str) -> Reply {
    let base = &call.base;
    let version = if call.path.contains("/v2.0/") { "v2.0/" } else { "" };
    Reply::ok(json!({
        "issuer": format!("{base}/{tenant}/v2.0"),
        "token_endpoint": format!("{base}/{tenant}/oauth2/{version}token"),
        "authorization_endpoint": format!("{base}/{tenant}/oauth2/{version}authorize"),
        "device_authorization_endpoint": format!("{base}/{tenant}/oauth2/{version}devicecode"),
        "end_session_endpoint": format!("{base}/{tenant}/oauth2/{version}logout"),
        "jwks_uri": format!("{base}/{tenant}/discovery/v2.0/keys"),
        "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt"],
        "response_types_supported": ["code", "id_token", "token"], "scopes_supported": ["openid"],
        "subject_types_supported": ["pairwise"], "id_token_signing_alg_values_supported": ["ES256"],
        "tenant_region_scope": null, "cloud_instance_name": host(base),
        "cloud_graph_host_name": host(base), "msgraph_host": host(base), "rbac_url": base,
    }))
}

/// `/common/discovery/instance`: this authority stands for itself.
pub(crate) fn instance_discovery(call: &Call) -> Reply {
    let name = host(&call.base);
    Reply::ok(json!({
        "tenant_discovery_endpoint": format!("{}/common/v2.0/.well-known/openid-configuration", call.base),
        "api-version": "1.1",
        "metadata": [{"preferred_network": name, "preferred_cache": name, "aliases": [name]}],
    }))
}

fn host(base: &str) -> &str {
    base.split_once("://").map_or(base, |(_, host)| host)
}
