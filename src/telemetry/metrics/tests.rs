use super::*;

fn all_touched() -> Metrics {
    let metrics = Metrics::new();
    metrics.reconcile("policy", ReconcileResult::Success, Duration::from_millis(3));
    metrics.cloud_write("close", CloudOutcome::Ambiguous);
    metrics.expiry_lag(Duration::from_secs(6));
    metrics.time_to_open(Duration::from_secs(9));
    metrics.overdue_rules(2);
    metrics.open_grants(5);
    metrics.drift_repair(DriftKind::Removed);
    metrics.lockdown_effective("team-web", "web-admins", true);
    metrics.refusal(Reason::PortNotAllowed);
    metrics.sweep(SweepResult::Complete);
    metrics.swept(4);
    metrics.admission_in_force(true);
    drop(metrics.at_work("policy"));
    let _at_work = metrics.at_work("request");
    metrics.rest_request("PATCH").answered(409);
    // Whoever asked waits for it no longer.
    drop(metrics.rest_request("GET"));
    metrics.api_server_clock(-3);
    metrics.ask_clouds(|| {
        vec![CloudUse {
            credential: "default".into(),
            requests: vec![("PUT", Some(201), 3), ("GET", None, 1)],
            waits: 4,
            waited: Duration::from_millis(2500),
            budget: vec![("write", 31)],
            throttled: Duration::from_millis(6500),
            clock_ahead: Some(2),
        }]
    });
    metrics.leader(true);
    metrics.event("Warning");
    metrics.audit_record(false);
    metrics.log_lines_dropped().inc();
    metrics
}

#[test]
fn every_metric_is_rendered_under_its_name_with_its_labels() {
    let text = all_touched().render();
    for line in [
        r#"controller_runtime_reconcile_total{controller="policy",result="success"} 1"#,
        r#"controller_runtime_reconcile_time_seconds_count{controller="policy"} 1"#,
        r#"portcullis_cloud_writes_total{operation="close",outcome="ambiguous"} 1"#,
        "portcullis_expiry_lag_seconds_sum 6.0",
        "portcullis_time_to_open_seconds_count 1",
        "portcullis_overdue_rules 2",
        "portcullis_open_grants 5",
        r#"portcullis_drift_repairs_total{kind="removed"} 1"#,
        r#"portcullis_lockdown_effective{namespace="team-web",policy="web-admins"} 1"#,
        r#"portcullis_refusals_total{reason="PortNotAllowed"} 1"#,
        r#"portcullis_sweeps_total{result="complete"} 1"#,
        "portcullis_swept_rules_total 4",
        "portcullis_admission_in_force 1",
        r#"controller_runtime_active_workers{controller="policy"} 0"#,
        r#"rest_client_requests_total{code="409",method="PATCH"} 1"#,
        r#"rest_client_requests_total{code="error",method="GET"} 1"#,
        r#"portcullis_cloud_requests_total{credential="default",method="PUT",code="201"} 3"#,
        r#"portcullis_cloud_requests_total{credential="default",method="GET",code="error"} 1"#,
        r#"portcullis_cloud_waits_total{credential="default"} 4"#,
        r#"portcullis_cloud_waited_seconds_total{credential="default"} 2.5"#,
        r#"portcullis_cloud_budget{credential="default",class="write"} 31"#,
        "portcullis_api_server_clock_ahead_seconds -3",
        r#"portcullis_cloud_clock_ahead_seconds{credential="default"} 2"#,
        r#"portcullis_cloud_throttled_seconds{credential="default"} 7"#,
        r#"leader_election_master_status{name="portcullis"} 1"#,
        r#"portcullis_events_total{type="Warning"} 1"#,
        r#"portcullis_audit_records_total{outcome="dropped"} 1"#,
        "portcullis_log_lines_dropped_total 1",
        concat!(r#"portcullis_build_info{version=""#, env!("CARGO_PKG_VERSION"), r#"",commit="unknown"} 1"#),
    ] {
        assert!(text.lines().any(|found| found == line), "no line {line:?} in\n{text}");
    }
    for what in ALL {
        assert!(text.contains(&format!("# TYPE {} {}", what.name, what.kind)), "{what:?}\n{text}");
        let sample = text.lines().find(|line| line.starts_with(what.name)).unwrap_or_default();
        for label in what.labels {
            assert!(sample.contains(&format!("{label}=\"")), "{what:?}: {sample}");
        }
    }
}

#[test]
fn one_that_does_not_hold_the_lease_says_nothing_of_what_only_the_holder_knows() {
    let metrics = all_touched();
    metrics.leader(false);
    let text = metrics.render();
    assert!(!text.contains("team-web"));
    for line in [
        r#"leader_election_master_status{name="portcullis"} 0"#,
        "portcullis_admission_in_force 0",
        "portcullis_open_grants 0",
        // What is overdue is for everybody.
        "portcullis_overdue_rules 2",
    ] {
        assert!(text.lines().any(|found| found == line), "no line {line:?} in\n{text}");
    }
}

#[test]
fn the_series_of_a_deleted_policy_goes_away() {
    let metrics = all_touched();
    metrics.forget_policy("team-web", "web-admins");
    assert!(!metrics.render().contains("team-web"));
}
