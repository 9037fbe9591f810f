//! Traces, by OTLP over HTTP; off unless an endpoint is configured.
//!
//! The trace of an object has the object's UID as its id, so that whoever has the object finds the trace, and every
//! replica, before and after a restart, adds to the same one. What is sent waits in a queue of a bounded length, and is
//! dropped where that is full: nothing here holds up a close.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
};
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Span;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Subscriber;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::registry::LookupSpan;
use url::Url;

use super::Error;

/// How long the collector has to take what is sent at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where spans are sent to, and in whose name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    /// Base URL of an OTLP/HTTP receiver, such as `http://collector.observability:4318`: spans go to `v1/traces` there.
    /// Headers are taken from `OTEL_EXPORTER_OTLP_HEADERS`.
    pub endpoint: Url,
    /// The name of this replica.
    pub instance: String,
    /// The cluster's id.
    pub cluster: String,
}

/// Spans on their way.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Begins to collect spans. A collector that does not answer is no error. Not to be called within a runtime: the client
    /// has one of its own.
    ///
    /// # Errors
    /// [`Error::Traces`] where the exporter cannot be set up.
    pub fn start(collector: &Collector) -> Result<Self, Error> {
        let endpoint = format!("{}/v1/traces", collector.endpoint.as_str().trim_end_matches('/'));
        let client = reqwest::blocking::Client::builder()
            .timeout(PATIENCE)
            // What is to reach a collector goes nowhere else.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| Error::Traces(error.to_string()))?;
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(endpoint)
            .build()
            .map_err(|error| Error::Traces(error.to_string()))?;
        let resource = Resource::builder()
            .with_service_name("portcullis")
            .with_attributes([
                KeyValue::new("service.version", super::VERSION),
                KeyValue::new("service.instance.id", collector.instance.clone()),
                KeyValue::new("k8s.cluster.name", collector.cluster.clone()),
            ])
            .build();
        Ok(Self(SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build()))
    }

    /// What takes up this program's own spans.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("portcullis"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_filter(
                FilterFn::new(|metadata| metadata.is_span() && metadata.target().starts_with("portcullis"))
                    .with_max_level_hint(LevelFilter::DEBUG),
            )
    }

    /// Sends what is left, for so long at most. Blocks: not to be called within a runtime.
    pub fn finish(self, within: Duration) {
        // What did not get through is lost; there is nobody left to tell.
        let _ = self.0.shutdown_with_timeout(within);
    }
}

/// Puts a span into the trace of the object with this UID. To be called before it is entered. Where no traces are
/// collected, or the UID is none, the span is as it was.
#[must_use]
pub fn of_object(uid: &str, span: Span) -> Span {
    if span.is_disabled() {
        return span;
    }
    let Ok(uid) = uuid::Uuid::try_parse(uid) else { return span };
    let (_, low) = uid.as_u64_pair();
    // A parent that nobody sends: each replica knows it without being told.
    let root = SpanContext::new(
        TraceId::from_bytes(*uid.as_bytes()),
        SpanId::from_bytes(low.to_be_bytes()),
        TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    );
    // An error says that no traces are collected.
    let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(root));
    span
}
