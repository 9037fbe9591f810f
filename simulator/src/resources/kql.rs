//! KQL.
