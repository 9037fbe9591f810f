//! What those see who run it: traces, metrics, log levels. Of the program itself, on a real API server.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use portcullis_harness::{Controller, eventually};
use prost::Message;
use serde_json::json;

use crate::walk::Play;

const REQUESTER: &str = "203.0.113.7";

/// What the collector wants to see of whoever sends it something.
const KEY: (&str, &str) = ("x-collector-key", "open-sesame");

/// A collector as OpenTelemetry's protocol has it. Keeps what it is sent with its key, as it came and as it is.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<(Vec<u8>, Vec<ExportTraceServiceRequest>)>>);

impl Collector {
    /// Its base URL.
    async fn start(&self) -> String {
        let kept = self.clone();
        let take = move |headers: HeaderMap, body: Bytes| async move {
            if headers.get(KEY.0).is_none_or(|key| key != KEY.1) {
                return StatusCode::UNAUTHORIZED;
            }
            let mut kept = kept.0.lock().unwrap();
            kept.1.push(ExportTraceServiceRequest::decode(body.clone()).unwrap());
            kept.0.extend_from_slice(&body);
            StatusCode::OK
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = axum::Router::new().route("/v1/traces", post(take));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        format!("http://{address}")
    }

    fn spans(&self) -> Vec<Span> {
        let kept = self.0.lock().unwrap();
        let scopes = kept.1.iter().flat_map(|sent| &sent.resource_spans).flat_map(|of| &of.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }
}

fn attribute(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|found| found.value.clone()?.value) {
        Some(Any::StringValue(text)) => text,
        Some(Any::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The calls of the cloud below the spans of this name in the trace of an object.
fn calls(spans: &[Span], uid: &str, name: &str) -> Vec<(String, String, String)> {
    let uid = uid.replace('-', "");
    let in_trace = |span: &&Span| hex(&span.trace_id) == uid;
    let above: Vec<&Span> = spans.iter().filter(in_trace).filter(|span| span.name == name).collect();
    let below = spans.iter().filter(in_trace).filter(|span| {
        span.kind == SpanKind::Client as i32 && above.iter().any(|above| above.span_id == span.parent_span_id)
    });
    below
        .map(|span| {
            let path = attribute(span, "url.path");
            let last = path.rsplit('/').next().unwrap_or_default().to_owned();
            (span.name.clone(), last, attribute(span, "http.response.status_code"))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_of_a_request_has_its_uid_and_leads_to_each_call_of_the_cloud() {
    let play = Play::new().await;
    let collector = Collector::default();
    let mut setup = play.stage.setup().await.unwrap();
    setup.config["otlpEndpoint"] = json!(collector.start().await);
    setup.environment.push(("OTEL_EXPORTER_OTLP_HEADERS".into(), format!("{}={}", KEY.0, KEY.1).into()));
    let mut controller = Controller::start(setup).await.unwrap();
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    play.request("mine", "web-1", "web-1", 22, REQUESTER, "30s").await;
    let request = play.reaches("jitreq/mine", "/status/state", "Active").await;
    play.reaches("jitreq/mine", "/status/state", "Expired").await;
    let metrics = controller.metrics().await.unwrap();
    assert!(controller.stop().await.unwrap().success());

    let spans = collector.spans();
    let uid = request["metadata"]["uid"].as_str().unwrap();
    let rule = request.pointer("/status/rules/0/name").and_then(|name| name.as_str());
    let rule = rule.unwrap_or_else(|| panic!("{:#}", request["status"])).to_owned();
    let opens = calls(&spans, uid, "open");
    assert!(opens.contains(&("PUT".to_owned(), rule.clone(), "201".to_owned())), "{rule}: {opens:?}");
    let closes = calls(&spans, uid, "close");
    assert!(closes.iter().any(|(method, name, _)| method == "DELETE" && *name == rule), "{closes:?}");
    assert!(
        spans.iter().any(|span| span.name == "reconcile request" && attribute(span, "object.uid") == uid)
    );
    // A write has the number that the audit trail has for it.
    let open = spans.iter().find(|span| span.name == "open" && attribute(span, "rule") == rule).unwrap();
    let number = format!(r#""number":{},"#, attribute(open, "audit.write"));
    let log = controller.log_text().unwrap();
    let intent = log.lines().find(|line| line.contains("WriteIntended") && line.contains(&number));
    assert!(intent.is_some_and(|intent| intent.contains(&rule)), "{number}: {intent:?}");
    let policy = play.get("jitpol/web-1").await.unwrap();
    let uid = policy["metadata"]["uid"].as_str().unwrap();
    let locks: Vec<&Span> =
        spans.iter().filter(|span| span.name == "lock" && attribute(span, "object.uid") == uid).collect();
    let put =
        |span: &&Span| span.name == "PUT" && locks.iter().any(|lock| lock.span_id == span.parent_span_id);
    assert!(spans.iter().any(|span| put(&span)), "{locks:?}");
    let of_policy = uid.replace('-', "");
    let is_its = |span: &&Span| hex(&span.trace_id) == of_policy;
    assert!(!spans.iter().any(|span| is_its(&span)), "a policy lives for years, and no trace may");

    // Nothing that lets anybody in is sent along.
    let sent = collector.0.lock().unwrap().0.clone();
    let cloud = play.stage.simulator.announcement();
    for secret in [cloud.client_secret.as_str(), "Bearer", "eyJ"] {
        assert!(!sent.windows(secret.len()).any(|found| found == secret.as_bytes()), "{secret:?} was sent");
    }
    let resource = collector.0.lock().unwrap().1[0].resource_spans[0].resource.clone().unwrap();
    let text = format!("{resource:?}");
    assert!(text.contains("portcullis") && text.contains("playground"), "{text}");

    // The calls are counted as well.
    let value = |start: &str| {
        let line = metrics.lines().find(|line| line.starts_with(start));
        let line = line.unwrap_or_else(|| panic!("no {start} in\n{metrics}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(value(r#"portcullis_cloud_requests_total{credential="default",method="PUT",code="201"}"#) >= 2.0);
    assert!(value(r#"portcullis_cloud_requests_total{credential="default",method="DELETE","#) >= 1.0);
    assert!((1.0..=160.0).contains(&value(r#"portcullis_cloud_budget{credential="default",class="write"}"#)));
    assert!(value(r#"rest_client_requests_total{code="200",method="PATCH"}"#) >= 3.0);
    assert!(value(r#"controller_runtime_active_workers{controller="request"}"#) >= 0.0);
}

/// One that takes connections and says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_holds_up_nothing() {
    let play = Play::new().await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut setup = play.stage.setup().await.unwrap();
    setup.config["otlpEndpoint"] = json!(format!("http://{}", silent.local_addr().unwrap()));
    let mut controller = Controller::start(setup).await.unwrap();
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    play.request("mine", "web-1", "web-1", 22, REQUESTER, "30s").await;
    let request = play.reaches("jitreq/mine", "/status/state", "Active").await;
    let at = |field: &str| request["status"][field].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    play.reaches("jitreq/mine", "/status/state", "Expired").await;
    let open = play.exposed(REQUESTER, "web-1", 22, at("grantedAt")).await;
    let late = open[0].1.unwrap().duration_since(at("expiresAt"));
    assert!(late < jiff::SignedDuration::from_secs(6), "closed {late:#} late");
    let begun = std::time::Instant::now();
    assert!(controller.stop().await.unwrap().success());
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_level_is_set_while_the_program_runs() {
    let play = Play::new().await;
    let setup = play.stage.setup().await.unwrap();
    let mut controller = Controller::start(setup).await.unwrap();
    let says = async |controller: &Controller, what: &str| {
        let found = eventually(what, Duration::from_secs(30), || async {
            anyhow::ensure!(controller.log_text()?.contains(what), "not said");
            Ok::<_, anyhow::Error>(())
        });
        found.await.unwrap_or_else(|error| panic!("{error:#}"));
    };
    let debug = "called Resource Manager";
    assert!(!controller.log_text().unwrap().contains(debug));
    controller.setup().config["logLevel"] = json!("warn,portcullis::providers=debug");
    controller.write_config().unwrap();
    says(&controller, "log level set").await;
    play.policy("web-1", &play.one_machine("web-1")).await;
    says(&controller, debug).await;
    // One that cannot be used changes nothing, and says why.
    controller.setup().config["logLevel"] = json!("loud=louder");
    controller.write_config().unwrap();
    says(&controller, "the changed configuration cannot be used").await;
    says(&controller, "info,portcullis=debug").await;
    controller.setup().config["logLevel"] = json!("info");
    controller.setup().config["concurrency"] = json!(3);
    controller.write_config().unwrap();
    says(&controller, "all but logLevel takes effect at the next start").await;
    let quiet = controller.log_text().unwrap().matches(debug).count();
    play.policy("win-1", &play.one_machine("win-1")).await;
    play.condition("jitpol/win-1", "Ready", "True").await;
    assert_eq!(controller.log_text().unwrap().matches(debug).count(), quiet);
    assert!(controller.stop().await.unwrap().success());
}
