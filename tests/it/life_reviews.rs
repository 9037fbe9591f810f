//! Whose word counts, and until when, as packets show it: plans that change, rights that are taken away, policies that
//! overlap, people who ask for others, programs that approve.

use jiff::Timestamp;
use portcullis_harness::User;
use serde_json::json;

use crate::ground::{REQUESTER, Site, on_site, target};
use crate::life::{ahead, until};
use crate::walk::moment;

/// Waits a few rounds and sees that nothing was opened.
async fn stays_shut(site: &Site, ip: &str, since: Timestamp) {
    site.some_rounds().await;
    assert_eq!(site.exposed(REQUESTER, ip, 22, since).await, []);
}

#[test]
fn what_changed_after_its_approval_needs_another_approval() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.terms("web", &a, json!({"approval": {"required": 1}})).await;
        let locked = Timestamp::now();
        site.asks(User::Developer, "mine", "web", json!({"notBefore": ahead(20)})).await;
        let first = site.approve(User::Approver, "mine", "web").await;
        site.state("jitreq/mine", "Scheduled").await;
        site.answers(&first, true, "counts under").await;
        let moved = site.address(9);
        site.change(&a.nic, |nic| {
            nic["properties"]["ipConfigurations"][0]["properties"]["privateIPAddress"] = json!(moved);
        })
        .await;
        let back = site.state("jitreq/mine", "Pending").await;
        site.answers(&first, false, "approves another plan").await;
        site.until("follows", "jitpol/web", |policy| {
            let target = target(policy, &a.id);
            target["addresses"] == json!([moved]) && target["state"] == "Configured"
        })
        .await;
        let followed = Timestamp::now();
        assert_eq!(back["status"]["rules"][0]["state"], "Planned");
        // Also when its start has come.
        let start = moment(&site.get("jitreq/mine").await.unwrap(), "/spec/notBefore");
        until(start).await;
        stays_shut(&site, &moved, followed).await;
        assert_eq!(site.exposed(REQUESTER, &a.ip, 22, locked).await, []);
        site.approve(User::Approver, "mine", "web").await;
        let found = site.state("jitreq/mine", "Active").await;
        assert_eq!(found["status"]["rules"][0]["destinations"], json!([moved]));
        assert!(site.passes(REQUESTER, &moved, 22).await);
        site.kubectl_delete("jitreq/mine").await;
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn an_approver_whose_right_was_taken_away_right_before_the_grant_counts_no_more() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.terms("web", &a, json!({"approval": {"required": 1}})).await;
        let locked = Timestamp::now();
        site.allow(User::Developer2, "approve", "web").await;
        let start = ahead(15);
        site.asks(User::Developer, "mine", "web", json!({"notBefore": start})).await;
        let review = site.approve(User::Developer2, "mine", "web").await;
        site.state("jitreq/mine", "Scheduled").await;
        let binding = site.right(User::Developer2, "approve", "web");
        let admin = &site.ground.play.admin;
        admin.run(&["-n", "team-web", "delete", "rolebinding", &binding]).await.unwrap();
        site.state("jitreq/mine", "Pending").await;
        let start: Timestamp = start.parse().unwrap();
        until(start).await;
        site.answers(&review, false, "may not approve under").await;
        site.says("jitreq/mine", "Approved", "False", "WaitingForApproval", "0 of 1").await;
        stays_shut(&site, &a.ip, locked).await;
        site.approve(User::Approver, "mine", "web").await;
        site.state("jitreq/mine", "Active").await;
        site.kubectl_delete("jitreq/mine").await;
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn every_policy_over_the_port_wants_reviews_of_its_own() {
    on_site(|site| async move {
        let a = site.usual().await;
        for policy in ["wide", "strict"] {
            site.terms(policy, &a, json!({"approval": {"required": 1}})).await;
        }
        let locked = Timestamp::now();
        site.asks(User::Developer, "mine", "wide", json!({})).await;
        let covered = site
            .until("is covered by both", "jitreq/mine", |found| {
                found["status"]["policies"].as_array().is_some_and(|policies| policies.len() == 2)
            })
            .await;
        assert_eq!(covered["status"]["policies"][0]["name"], site.name("wide"), "the named one first");
        let first = site.approve(User::Approver, "mine", "wide").await;
        site.answers(&first, true, "counts under").await;
        let strict = site.name("strict");
        let missing = format!("0 of 1 approvals under JitPolicy {strict}");
        site.says("jitreq/mine", "Approved", "False", "WaitingForApproval", &missing).await;
        // The same word under the same policy once more is one word.
        let second = site.approve(User::Approver2, "mine", "wide").await;
        site.answers(&second, true, "counts under").await;
        stays_shut(&site, &a.ip, locked).await;
        site.approve(User::Approver, "mine", "strict").await;
        site.state("jitreq/mine", "Active").await;
        assert!(site.passes(REQUESTER, &a.ip, 22).await);
        // Each of them can stop it.
        site.word(User::Approver2, "mine", "strict", "Revoked").await;
        site.state("jitreq/mine", "Revoked").await;
        assert!(!site.passes(REQUESTER, &a.ip, 22).await);
        site.kubectl_delete("jitpol/wide").await;
        site.kubectl_delete("jitpol/strict").await;
    });
}

#[test]
fn ones_own_approval_counts_where_the_policy_says_so_and_nowhere_else() {
    on_site(|site| async move {
        let a = site.usual().await;
        for (policy, own) in [("mine-too", true), ("others", false)] {
            let terms = json!({"approval": {"required": 1, "allowSelfApproval": own}});
            site.terms(policy, &a, terms.clone()).await;
            site.allow(User::Developer, "approve", policy).await;
            let locked = Timestamp::now();
            let name = format!("by-{policy}");
            site.asks(User::Developer, &name, policy, json!({})).await;
            let review = site.approve(User::Developer, &name, policy).await;
            let words = if own { "under JitPolicy" } else { "somebody else has to approve" };
            site.answers(&review, own, words).await;
            if own {
                site.state(&format!("jitreq/{name}"), "Active").await;
                assert!(site.passes(REQUESTER, &a.ip, 22).await);
            } else {
                stays_shut(&site, &a.ip, locked).await;
            }
            site.kubectl_delete(&format!("jitreq/{name}")).await;
            site.kubectl_delete(&format!("jitpol/{policy}")).await;
        }
    });
}

#[test]
fn neither_who_asks_for_another_nor_the_other_approves_it() {
    on_site(|site| async move {
        let a = site.usual().await;
        let terms = json!({"approval": {"required": 1, "allowSelfApproval": true}});
        site.terms("web", &a, terms).await;
        for verb in ["approve", "delegate"] {
            site.allow(User::Developer, verb, "web").await;
        }
        let locked = Timestamp::now();
        let asked = json!({"onBehalfOf": "APPROVER@contoso.com", "notAfter": ahead(900), "duration": "10m"});
        let manifest = site.wanted("mine", "web", &asked).to_string();
        let developer = site.kubectl(User::Developer);
        let patience = std::time::Duration::from_secs(20);
        portcullis_harness::eventually("it is taken", patience, || developer.apply(&manifest)).await.unwrap();
        for (user, words) in [
            (User::Developer, "allowSelfApproval does not apply"),
            (User::Approver, "whom the request is on behalf of"),
        ] {
            let review = site.approve(user, "mine", "web").await;
            site.answers(&review, false, words).await;
        }
        stays_shut(&site, &a.ip, locked).await;
        site.approve(User::Approver2, "mine", "web").await;
        site.state("jitreq/mine", "Active").await;
        assert!(site.passes(REQUESTER, &a.ip, 22).await);
        site.kubectl_delete("jitreq/mine").await;
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn all_programs_together_are_one_person() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.terms("web", &a, json!({"approval": {"required": 2}})).await;
        let locked = Timestamp::now();
        site.asks(User::Developer, "mine", "web", json!({})).await;
        for (bot, counts) in [(User::Viewer, true), (User::Outsider, false)] {
            site.allow(bot, "approve", "web").await;
            let review = site.approve(bot, "mine", "web").await;
            site.answers(&review, counts, if counts { "counts under" } else { "counts already" }).await;
        }
        stays_shut(&site, &a.ip, locked).await;
        site.approve(User::Approver, "mine", "web").await;
        let found = site.state("jitreq/mine", "Active").await;
        assert_eq!(found["status"]["policies"][0]["approvedBy"], json!(["viewer", "approver"]));
        site.kubectl_delete("jitreq/mine").await;
        site.kubectl_delete("jitpol/web").await;
    });
}
