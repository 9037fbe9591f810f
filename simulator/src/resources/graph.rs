//! Azure Resource Graph: `POST /providers/Microsoft.ResourceGraph/resources`.

use serde_json::{Value, json};

use super::{kql, render};
use crate::{
    arm::{crud, errors::ArmError},
    control::faults::Plan,
    http::Reply,
    identity::principals::Caller,
    world::World,
};

const MAX_ROWS: usize = 1000;

fn bad(message: impl Into<String>) -> ArmError {
    let mut error = ArmError::bad(
        "BadRequest",
        "Please provide below info when asking for support: timestamp, correlationId.",
    );
    error.details.push(json!({"code": "InvalidQuery", "message": message.into()}));
    error
}

/// Runs a query over the subscriptions it names, as far as the caller may read them.
pub(crate) fn query(world: &World, caller: &Caller, plan: &Plan, body: &Value) -> Result<Reply, ArmError> {
    let text = body["query"].as_str().ok_or_else(|| bad("query: a text is expected"))?;
    let query = kql::parse(text).map_err(|why| bad(format!("Query is invalid: {why}")))?;
    let containers = match query.table.to_lowercase().as_str() {
        "resources" => false,
        "resourcecontainers" => true,
        other => return Err(bad(format!("The table '{other}' is not known here"))),
    };
    let own = world.subscriptions.iter().filter(|(_, tenant)| **tenant == caller.tenant).map(|(id, _)| id);
    let wanted: Vec<String> = match body["subscriptions"].as_array() {
        Some(list) => {
            let named: Vec<String> = list.iter().filter_map(Value::as_str).map(str::to_lowercase).collect();
            own.filter(|id| named.contains(id)).cloned().collect()
        }
        None => own.cloned().collect(),
    };
    let rows = crud::view(world, plan, |store| {
        let mut rows = vec![];
        for subscription in &wanted {
            let prefix = format!("/subscriptions/{subscription}/");
            for resource in store.under(&prefix) {
                let id = resource.id();
                let fits =
                    if containers { id.is_group() } else { id.types.len() == 1 && id.extends.is_none() };
                if !fits || caller.require(world, &id.action("read"), &id.text).is_err() {
                    continue;
                }
                let whole = render(store, resource);
                let kind = if containers {
                    "microsoft.resources/subscriptions/resourcegroups".to_owned()
                } else {
                    id.full_type().to_lowercase()
                };
                rows.push(json!({
                    "id": id.text, "name": id.name(), "type": kind, "location": whole["location"],
                    "resourceGroup": id.group.as_deref().unwrap_or("").to_lowercase(), "subscriptionId": subscription,
                    "tenantId": caller.tenant, "kind": "", "managedBy": whole["managedBy"].as_str().unwrap_or(""),
                    "sku": whole["sku"], "tags": whole["tags"], "properties": whole["properties"], "zones": whole["zones"],
                }));
            }
        }
        rows
    });
    page(body, query.run(rows))
}

fn page(body: &Value, rows: Vec<Value>) -> Result<Reply, ArmError> {
    let options = &body["options"];
    let start = match options["$skipToken"].as_str() {
        Some(token) => token.parse::<usize>().map_err(|_| bad("options.$skipToken: not one of ours"))?,
        None => options["$skip"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0),
    };
    let size = options["$top"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(MAX_ROWS);
    if size == 0 || size > MAX_ROWS {
        return Err(bad(format!("options.$top: from 1 to {MAX_ROWS}")));
    }
    let total = rows.len();
    let data: Vec<Value> = rows.into_iter().skip(start).take(size).collect();
    let next = start + data.len();
    let mut answer = json!({"totalRecords": total, "count": data.len(), "data": data, "facets": [],
                            "resultTruncated": "false"});
    if next < total {
        answer["$skipToken"] = json!(next.to_string());
    }
    if options["resultFormat"].as_str() == Some("table") {
        return Err(bad("options.resultFormat: objectArray alone is known here"));
    }
    Ok(Reply::ok(answer))
}
