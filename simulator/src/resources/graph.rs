//! Azure Resource Graph.
use crate::{arm::errors::ArmError, http::Reply, identity::principals::Caller, world::World};
use serde_json::Value;
pub(crate) fn query(_: &World, _: &Caller, _: &Value) -> Result<Reply, ArmError> {
    Err(ArmError::bad("NotYet", ""))
}
