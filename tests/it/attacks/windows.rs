//! Times and patterns that make no sense, or that could keep somebody busy: refused in words, or harmless.

use jiff::{SignedDuration, Timestamp};
use portcullis_harness::User;
use serde_json::{Value, json};

use crate::ground::{REQUESTER, condition, on_site, targets};
use crate::walk::moment;

#[test]
fn windows_that_are_over_or_too_far_or_too_long_open_nothing_more_than_the_policy_allows() {
    on_site(|site| async move {
        let a = site.usual().await;
        let spec = json!({
            "targets": targets(&[&a]), "ports": [{"port": 22, "maxDuration": "1h"}],
            "limits": {"delegatedHorizon": "24h"},
        });
        site.guarded_by("web", &spec).await;
        let locked = Timestamp::now();
        let developer = site.kubectl(User::Developer);
        let at = |hours: i64| (Timestamp::now() + SignedDuration::from_hours(hours)).to_string();
        let said = async |name: &str, more: Value| {
            site.send(&developer, &[], &site.wanted(name, "web", &more)).await
        };
        for (more, words) in [
            (json!({"notBefore": at(3), "notAfter": at(2)}), "notBefore must be before notAfter"),
            (json!({"notBefore": at(-2), "notAfter": at(-3)}), "notBefore must be before notAfter"),
            (json!({"duration": "61m"}), "spec.duration is longer than"),
            (json!({"duration": "1000000h"}), "spec.duration"),
            (json!({"notBefore": at(25)}), "spec.notBefore may lie at most 24h ahead"),
            (json!({"notAfter": "9999-12-31T23:59:61Z"}), "must be a moment in time"),
        ] {
            let said = said("refused", more.clone()).await;
            assert!(said.code != 0 && said.stderr.contains(words), "{more}: {said:?}");
        }
        // Both in the past: no mistake that holds up a pipeline, and nothing to open.
        let past = said("past", json!({"notBefore": at(-3), "notAfter": at(-2)})).await;
        assert!(past.code == 0 && past.stderr.contains("has passed"), "{past:?}");
        let over = site.state("jitreq/past", "TimedOut").await;
        let told = condition(&over, "Active");
        assert!(told["message"].as_str().unwrap().contains("are left until spec.notAfter"), "{told}");
        let soon = (Timestamp::now() + SignedDuration::from_secs(20)).to_string();
        assert_eq!(said("soon", json!({"notAfter": soon})).await.code, 0);
        site.state("jitreq/soon", "TimedOut").await;
        assert_eq!(site.exposed(REQUESTER, &a.ip, 22, locked).await, []);

        // A window of a century buys no more than the duration, from the grant on.
        let wide = json!({"notBefore": at(-24 * 365), "notAfter": "2126-01-01T00:00:00Z", "duration": "30m"});
        assert_eq!(said("wide", wide).await.code, 0);
        let wide = site.state("jitreq/wide", "Active").await;
        let granted = moment(&wide, "/status/grantedAt");
        assert_eq!(moment(&wide, "/status/expiresAt"), granted + SignedDuration::from_mins(30));
        site.kubectl_delete("jitreq/wide").await;
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn patterns_that_do_not_compile_or_that_run_away_stop_nobody_but_their_own_policy() {
    on_site(|site| async move {
        let a = site.usual().await;
        let locked = Timestamp::now() + SignedDuration::from_secs(1);
        let with = |pattern: &str| {
            json!({
                "targets": targets(&[&a]), "justification": {"required": true, "pattern": pattern},
            })
        };
        for pattern in ["(", "[z-a]", "a{2,1}", "(?<!x)y", "(a)\\1"] {
            let said = site.refused(&site.manifest("web", &with(pattern))).await;
            let words = "must be a regular expression (RE2 syntax)";
            assert!(
                said.contains("spec.justification.pattern") && said.contains(words),
                "{pattern:?}: {said}"
            );
        }
        // What the API server's RE2 takes and this program cannot use is said by the policy, which grants nothing.
        for pattern in ["(\\pL{1,30}){1,30}", "^\\QINC\\E"] {
            site.policy("web", &with(pattern)).await;
            let reason = "spec.justification.pattern";
            site.says("jitpol/web", "Stalled", "True", "InvalidSpec", reason).await;
        }
        site.asks_as(&site.kubectl(User::Developer), "held", "web", &json!({"justification": "INC-1"})).await;
        site.says("jitreq/held", "Approved", "False", "InvalidSpec", "spec.justification.pattern").await;
        site.some_rounds().await;
        assert_eq!(site.ours_that("net", "Allow").await, Vec::<Value>::new());

        // What takes exponential time elsewhere takes none here, and answers.
        let runaway = "^(a|a|aa)*(a+)+$";
        site.policy("web", &with(runaway)).await;
        site.says("jitpol/web", "Ready", "True", "Configured", "").await;
        let locked = locked.max(Timestamp::now());
        let begun = std::time::Instant::now();
        let long = "a".repeat(1023);
        let evil = site.wanted("evil", "web", &json!({"justification": format!("{long}!")}));
        let said = site.send(&site.kubectl(User::Developer), &[], &evil).await;
        assert!(said.code != 0 && said.stderr.contains("spec.justification must match"), "{said:?}");
        // As a request that came before its policy, so that the controller is the one to judge.
        let good = json!({"justification": long});
        site.asks_as(&site.kubectl(User::Developer), "good", "web", &good).await;
        site.state("jitreq/good", "Active").await;
        assert!(begun.elapsed().as_secs() < 45, "{:?}", begun.elapsed());
        assert_eq!(site.exposed("198.51.100.23", &a.ip, 22, locked).await, []);
        for object in ["jitreq/held", "jitreq/good", "jitpol/web"] {
            site.kubectl_delete(object).await;
        }
    });
}
