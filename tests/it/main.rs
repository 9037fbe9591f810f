//! Integration tests: one binary, one module for each subject.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should fail where it stands"
)]

mod admission;
mod api_bad_input;
mod api_columns;
mod api_crds;
mod api_values;
mod approval;
mod attacks;
mod audit;
mod azure_firewall;
mod before_stamping;
mod busy;
mod cli;
mod clocks;
mod cloud_failures;
mod cluster;
mod crashes;
mod degraded;
mod docs;
mod draining;
mod fuzz_corpus;
mod gate;
mod gitops;
mod gitops_states;
mod ground;
mod house;
mod installations;
mod jit;
mod laws;
mod life;
mod life_reviews;
mod loops;
mod plan_adoption;
mod plan_authorize;
mod plan_changes;
mod plan_denies;
mod plan_dnat;
mod plan_edges;
mod plan_exemptions;
mod plan_exposure;
mod plan_firewall;
mod plan_foresight;
mod plan_laws;
mod plan_lifecycle;
mod plan_locks;
mod plan_opens;
mod plan_report;
mod plan_review_laws;
mod plan_reviews;
mod plan_sets;
mod plan_shortening;
mod plan_slow;
mod plan_terms;
mod plan_world;
mod protocol_model;
mod provider_azure;
mod provider_conformance;
mod provider_firewall;
mod provider_hops;
mod provider_memory;
mod provider_simulator;
mod provider_topology;
mod replay;
mod replicas;
mod sessions;
mod silent;
mod tenancy;
mod walk;
mod watching;
mod without_cluster;
mod worlds;
mod worlds_drift;
