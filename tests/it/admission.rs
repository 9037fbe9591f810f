//! Whether admission is in force, on a real API server: what the controller does while somebody takes it away,
//! narrows it, or puts it back, with the packets as witnesses.

use portcullis::api::admission::{CONTROLLER_USER, text};

#[test]
fn what_is_shipped_is_what_the_program_counts_on() {
    let path = portcullis_harness::checkout().join("deploy/base/admission.yaml");
    let shipped = std::fs::read_to_string(path).unwrap();
    assert!(
        shipped == text(CONTROLLER_USER).unwrap(),
        "deploy/base/admission.yaml is out of date: run `portcullis admission --output deploy/base/admission.yaml`"
    );
}
