//! Approvals that must not count: one's own, others' of something else, many of one person. Packets decide.

use jiff::{SignedDuration, Timestamp};
use portcullis_harness::User;
use portcullis_harness::install::NAMESPACE;
use serde_json::json;

use super::hands::user;
use crate::ground::{REQUESTER, condition, on_site, targets};

/// Somebody who asks, may approve and may delegate, in the shared namespace.
const BUSY: User = User::Approver2;

#[test]
fn nobody_approves_their_own_be_it_directly_or_on_anothers_behalf() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.guarded("web", &a, 1).await;
        let locked = Timestamp::now();
        let (busy, admin) = (site.kubectl(BUSY), site.kubectl(User::Admin));
        for role in ["portcullis-requester", "portcullis-delegate"] {
            site.bind(role, role, &user(BUSY.name())).await;
        }
        site.asks_as(&busy, "own", "web", &json!({})).await;
        let own = site.planned("jitreq/own").await;
        site.approves(&busy, ("own", "web"), &own, false, "approver2 asked: somebody else has to approve")
            .await;

        // Asked in the name of somebody who could approve, whatever the name looks like.
        let end = Timestamp::now() + SignedDuration::from_hours(2);
        for (number, claim) in ["approver", "oidc:Approver@contoso.com"].into_iter().enumerate() {
            let more = json!({"onBehalfOf": claim, "notAfter": end.to_string()});
            let name = format!("claimed-{number}");
            site.asks_as(&busy, &name, "web", &more).await;
            let claimed = site.planned(&format!("jitreq/{name}")).await;
            let by = |who: User| (site.kubectl(who), format!("{name}-{}", who.name()));
            let (whom, review) = by(User::Approver);
            site.approves(&whom, (&review, "web"), &claimed, false, "is whom the request is on behalf of")
                .await;
            let (delegate, review) = by(BUSY);
            site.approves(&delegate, (&review, "web"), &claimed, false, "asked, on another's behalf").await;
        }
        site.some_rounds().await;
        assert_eq!(site.exposed(REQUESTER, &a.ip, 22, locked).await, []);

        site.approves(&admin, ("other", "web"), &own, true, "under JitPolicy").await;
        site.state("jitreq/own", "Active").await;
        assert!(site.passes(REQUESTER, &a.ip, 22).await, "somebody else's word opens it");
        for name in ["own", "claimed-0", "claimed-1"] {
            site.kubectl_delete(&format!("jitreq/{name}")).await;
        }
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn one_person_fills_no_quorum_however_many_names_and_accounts_they_have() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.guarded("web", &a, 3).await;
        let locked = Timestamp::now();
        let (developer, approver) = (site.kubectl(User::Developer), site.kubectl(User::Approver));
        site.asks_as(&developer, "mine", "web", &json!({})).await;
        let mine = site.planned("jitreq/mine").await;
        site.approves(&approver, ("first", "web"), &mine, true, "under JitPolicy").await;
        site.approves(&approver, ("again", "web"), &mine, false, "approver counts already").await;
        // Whoever may impersonate could be anybody; other spellings of one name are still one person.
        let admin = site.kubectl(User::Admin);
        for (number, name) in ["Approver", "APPROVER"].into_iter().enumerate() {
            let review = format!("spelt-{number}");
            let word = site.review_of(&review, &mine, "web", "Approved");
            let sent = site.send(&admin, &["--as", name, "--as-group", "approvers"], &word).await;
            assert_eq!(sent.code, 0, "{sent:?}");
            site.answered(&review, false, "counts already under").await;
        }
        for (number, counted) in [(0, true), (1, false), (2, false)] {
            let name = format!("bot-{number}");
            let (account, _) = site.approving_account(&name).await;
            let says = if counted { "under JitPolicy" } else { "counts already under" };
            site.approves(&account, (&name, "web"), &mine, counted, says).await;
        }
        site.some_rounds().await;
        let found = site.get("jitreq/mine").await.unwrap();
        assert_eq!(found["status"]["policies"][0]["approved"], 2, "{:#}", found["status"]);
        assert_eq!(site.exposed(REQUESTER, &a.ip, 22, locked).await, []);
        let third = site.kubectl(User::Approver2);
        site.approves(&third, ("third", "web"), &mine, true, "under JitPolicy").await;
        site.state("jitreq/mine", "Active").await;
        assert!(site.passes(REQUESTER, &a.ip, 22).await);
        site.kubectl_delete("jitreq/mine").await;
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn an_approval_dies_with_the_request_and_with_the_policy_it_was_given_for() {
    on_site(|site| async move {
        let a = site.usual().await;
        let (developer, approver) = (site.kubectl(User::Developer), site.kubectl(User::Approver));
        let other = site.kubectl(User::Approver2);

        // Before there is a policy: there is no plan to approve, and none can be guessed.
        site.asks_as(&developer, "early", "web", &json!({})).await;
        let early = site.until("waits", "jitreq/early", |found| {
            condition(found, "Approved")["reason"] == "PolicyNotFound"
        });
        let mut early = early.await;
        early["status"]["planHash"] = json!("0".repeat(64));
        let word = site.review_of("early", &early, "web", "Approved");
        assert_eq!(site.send(&approver, &[], &word).await.code, 0);
        site.guarded("web", &a, 1).await;
        let locked = Timestamp::now();
        site.answered("early", false, "approves another plan").await;

        // Deleted, and created again wider under the same name.
        site.guarded("web", &a, 2).await;
        site.asks_as(&developer, "mine", "web", &json!({})).await;
        let narrow = site.planned("jitreq/mine").await;
        site.approves(&approver, ("first", "web"), &narrow, true, "under JitPolicy").await;
        site.kubectl_delete("jitreq/mine").await;
        let wide = json!([{"port": 22, "sources": [{"cidr": "0.0.0.0/0"}]}]);
        site.asks_as(&developer, "mine", "web", &json!({"ports": wide})).await;
        let mine = site.planned("jitreq/mine").await;
        assert_ne!(mine["status"]["planHash"], narrow["status"]["planHash"]);
        site.approves(&other, ("second", "web"), &mine, true, "under JitPolicy").await;
        // The right object with the plan of the old one.
        let mut stale = mine.clone();
        stale["status"]["planHash"] = narrow["status"]["planHash"].clone();
        site.approves(&approver, ("stale", "web"), &stale, false, "approves another plan").await;
        site.some_rounds().await;
        assert_eq!(site.get("jitreq/mine").await.unwrap()["status"]["policies"][0]["approved"], 1);

        // The policy deleted, and created again as it was: another one, whatever its name.
        site.kubectl_delete("jitpol/web").await;
        site.guarded("web", &a, 2).await;
        let replanned = site
            .until("is planned anew", "jitreq/mine", |found| {
                let hash = &found["status"]["planHash"];
                hash.is_string() && *hash != mine["status"]["planHash"]
            })
            .await;
        site.answered("second", false, "approves another plan").await;
        site.approves(&approver, ("third", "web"), &replanned, true, "under JitPolicy").await;
        site.some_rounds().await;
        assert_eq!(site.get("jitreq/mine").await.unwrap()["status"]["policies"][0]["approved"], 1);
        assert_eq!(site.exposed(REQUESTER, &a.ip, 22, locked).await, []);
        site.approves(&other, ("fourth", "web"), &replanned, true, "under JitPolicy").await;
        site.state("jitreq/mine", "Active").await;
        assert!(site.passes(REQUESTER, &a.ip, 22).await);
        for object in ["jitreq/mine", "jitreq/early", "jitpol/web"] {
            site.kubectl_delete(object).await;
        }
    });
}

#[test]
fn a_denial_is_final_before_and_after_approvals_and_closes_what_is_open() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.guarded("web", &a, 2).await;
        let locked = Timestamp::now();
        let developer = site.kubectl(User::Developer);
        let [one, other] = [User::Approver, User::Approver2].map(|user| site.kubectl(user));
        for (name, verdicts) in
            [("after", ["Approved", "Denied", "Approved"]), ("before", ["Denied", "Approved", "Approved"])]
        {
            site.asks_as(&developer, name, "web", &json!({})).await;
            let object = format!("jitreq/{name}");
            let asked = site.planned(&object).await;
            let admin = site.kubectl(User::Admin);
            for (number, (verdict, by)) in verdicts.into_iter().zip([&one, &other, &admin]).enumerate() {
                let review = format!("{name}-{number}");
                assert_eq!(
                    site.send(by, &[], &site.review_of(&review, &asked, "web", verdict)).await.code,
                    0
                );
                site.until("is answered", &format!("jitrev/{review}"), |found| {
                    found["status"]["reason"].is_string()
                })
                .await;
            }
            let denied = site.state(&object, "Denied").await;
            assert_eq!(condition(&denied, "Denied")["reason"], "ReviewDenied");
        }
        site.some_rounds().await;
        assert_eq!(site.exposed(REQUESTER, &a.ip, 22, locked).await, []);

        site.asks_as(&developer, "live", "web", &json!({})).await;
        let live = site.planned("jitreq/live").await;
        site.approves(&one, ("live-0", "web"), &live, true, "under JitPolicy").await;
        site.approves(&other, ("live-1", "web"), &live, true, "").await;
        site.state("jitreq/live", "Active").await;
        assert!(site.passes(REQUESTER, &a.ip, 22).await);
        assert_eq!(site.send(&one, &[], &site.review_of("live-2", &live, "web", "Denied")).await.code, 0);
        site.state("jitreq/live", "Revoked").await;
        assert!(!site.passes(REQUESTER, &a.ip, 22).await);
        // And nobody's later word brings it back.
        let closed = Timestamp::now();
        assert_eq!(site.send(&other, &[], &site.review_of("live-3", &live, "web", "Approved")).await.code, 0);
        site.answered("live-3", false, "the request is over already").await;
        site.some_rounds().await;
        assert_eq!(site.exposed(REQUESTER, &a.ip, 22, closed).await, []);
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn an_approver_whose_right_is_taken_away_before_the_grant_has_not_approved() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.guarded("web", &a, 1).await;
        let locked = Timestamp::now();
        let developer = site.kubectl(User::Developer);
        let (account, binding) = site.approving_account("leaver").await;
        // Time enough to approve and to be removed, on a busy machine too.
        let start = Timestamp::from_second(Timestamp::now().as_second() + 20).unwrap();
        site.asks_as(&developer, "mine", "web", &json!({"notBefore": start.to_string()})).await;
        let mine = site.planned("jitreq/mine").await;
        site.approves(&account, ("leaver", "web"), &mine, true, "under JitPolicy").await;
        site.state("jitreq/mine", "Scheduled").await;
        site.kubectl(User::Admin).run(&["-n", NAMESPACE, "delete", "rolebinding", &binding]).await.unwrap();
        assert!(Timestamp::now() < start, "the machine is too slow for this test: give it more time");

        let back = site
            .until("waits again", "jitreq/mine", |found| {
                Timestamp::now() > start && found["status"]["state"] == "Pending"
            })
            .await;
        assert_eq!(condition(&back, "Approved")["reason"], "WaitingForApproval", "{:#}", back["status"]);
        assert!(back["status"]["grantedAt"].is_null());
        site.answered("leaver", false, "may not approve under JitPolicy").await;
        site.some_rounds().await;
        assert_eq!(site.exposed(REQUESTER, &a.ip, 22, locked).await, []);
        let approver = site.kubectl(User::Approver);
        site.approves(&approver, ("stayer", "web"), &back, true, "under JitPolicy").await;
        site.state("jitreq/mine", "Active").await;
        assert!(site.passes(REQUESTER, &a.ip, 22).await);
        site.kubectl_delete("jitreq/mine").await;
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn unknown_names_and_too_long_ones_are_refused_and_the_longest_are_judged() {
    on_site(|site| async move {
        let a = site.usual().await;
        let spec = json!({"targets": targets(&[&a]), "approval": {"required": 2}});
        site.guarded_by("web", &spec).await;
        let locked = Timestamp::now();
        let admin = site.kubectl(User::Admin);
        // Only whoever may impersonate can have any name: authenticators give out such names too.
        let named = |letter: &str, length: usize| letter.repeat(length);
        let (asker, longest) = (named("a", 1024), named("b", 1024));
        let as_asker = ["--as", asker.as_str(), "--as-group", "developers"];
        let manifest = site.wanted("mine", "web", &json!({}));
        let sent =
            site.send(&admin, &["--as", &named("a", 1025), "--as-group", "developers"], &manifest).await;
        assert!(sent.code != 0 && sent.stderr.contains("spec.requester.username: Too long"), "{sent:?}");
        let sent = site.send(&admin, &as_asker, &manifest).await;
        assert_eq!(sent.code, 0, "{sent:?}");
        let mine = site.planned("jitreq/mine").await;
        assert_eq!(mine["spec"]["requester"]["username"], json!(asker));

        let approve = async |review: &str, name: &str| {
            let word = site.review_of(review, &mine, "web", "Approved");
            site.send(&admin, &["--as", name, "--as-group", "approvers"], &word).await
        };
        let sent = approve("longer", &named("b", 1025)).await;
        assert!(sent.code != 0 && sent.stderr.contains("spec.reviewer.username: Too long"), "{sent:?}");
        // Nobody knows this one, nor has given it anything.
        let word = site.review_of("unknown", &mine, "web", "Approved");
        let sent = site.send(&admin, &["--as", "no-such-user", "--as-group", "viewers"], &word).await;
        assert!(sent.code != 0 && sent.stderr.contains("no-such-user"), "{sent:?}");
        assert_eq!(approve("own", &asker).await.code, 0);
        site.answered("own", false, "asked: somebody else has to approve").await;
        assert_eq!(approve("longest", &longest).await.code, 0);
        site.answered("longest", true, "under JitPolicy").await;
        assert_eq!(site.exposed(REQUESTER, &a.ip, 22, locked).await, []);
        // One that differs in its last letter alone is somebody else.
        assert_eq!(approve("nearly", &(named("b", 1023) + "c")).await.code, 0);
        site.state("jitreq/mine", "Active").await;
        assert!(site.passes(REQUESTER, &a.ip, 22).await);
        site.kubectl_delete("jitreq/mine").await;
        site.kubectl_delete("jitpol/web").await;
    });
}
