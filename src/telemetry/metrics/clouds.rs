//! What the clouds' clients count themselves, asked for when metrics are read.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{
    CLOCK_AHEAD, CLOUD_BUDGET, CLOUD_REQUESTS, CLOUD_WAITED, CLOUD_WAITS, Description, THROTTLED, code,
};

/// What one credential has asked of its cloud, and what it may ask, at this moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CloudUse {
    /// Its name.
    pub credential: String,
    /// Calls by method and by the status of the answer, none where no answer came.
    pub requests: Vec<(&'static str, Option<u16>, u64)>,
    /// Calls that waited before they were sent.
    pub waits: u64,
    /// How long those have waited, together.
    pub waited: Duration,
    /// Calls left by class, in the subscription where they are fewest.
    pub budget: Vec<(&'static str, i64)>,
    /// For how long the cloud has asked to wait.
    pub throttled: Duration,
    /// By how many seconds its clock is ahead of ours, where it said so.
    pub clock_ahead: Option<i64>,
}

type Ask = Box<dyn Fn() -> Vec<CloudUse> + Send + Sync>;

/// Asks the clouds, once somebody has said how.
#[derive(Clone, Default)]
pub(super) struct Clouds(Arc<OnceLock<Ask>>);

impl std::fmt::Debug for Clouds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clouds")
    }
}

impl Clouds {
    /// The first who says how is the one that is asked.
    pub(super) fn ask(&self, ask: impl Fn() -> Vec<CloudUse> + Send + Sync + 'static) {
        let _ = self.0.set(Box::new(ask));
    }
}

impl Collector for Clouds {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let clouds = self.0.get().map(|ask| ask()).unwrap_or_default();
        let of = |cloud: &CloudUse| ("credential", cloud.credential.clone());
        let requests = clouds.iter().flat_map(|cloud| {
            cloud.requests.iter().map(move |(method, status, count)| {
                let labels = [of(cloud), ("method", (*method).to_owned()), ("code", code(*status))];
                (labels, ConstCounter::new(*count))
            })
        });
        series(&mut encoder, CLOUD_REQUESTS, requests)?;
        let waits = clouds.iter().map(|cloud| ([of(cloud)], ConstCounter::new(cloud.waits)));
        series(&mut encoder, CLOUD_WAITS, waits)?;
        let waited = clouds.iter().map(|cloud| ([of(cloud)], ConstCounter::new(cloud.waited.as_secs_f64())));
        series(&mut encoder, CLOUD_WAITED, waited)?;
        let budget = clouds.iter().flat_map(|cloud| {
            let labels = move |class: &str| [of(cloud), ("class", class.to_owned())];
            cloud.budget.iter().map(move |(class, left)| (labels(class), ConstGauge::new(*left)))
        });
        series(&mut encoder, CLOUD_BUDGET, budget)?;
        let ahead =
            clouds.iter().filter_map(|cloud| Some(([of(cloud)], ConstGauge::new(cloud.clock_ahead?))));
        series(&mut encoder, CLOCK_AHEAD, ahead)?;
        let throttled = clouds.iter().map(|cloud| {
            let whole = cloud.throttled.as_secs() + u64::from(cloud.throttled.subsec_nanos() > 0);
            ([of(cloud)], ConstGauge::new(i64::try_from(whole).unwrap_or(i64::MAX)))
        });
        series(&mut encoder, THROTTLED, throttled)
    }
}

/// All series of one metric.
fn series<L: EncodeLabelSet, M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    what: Description,
    mut values: impl Iterator<Item = (L, M)>,
) -> Result<(), std::fmt::Error> {
    // Of what there is nothing to say, not even the name is said.
    let Some((labels, value)) = values.next() else { return Ok(()) };
    let help = format!("{}.", what.help);
    let mut family = encoder.encode_descriptor(what.name, &help, None, value.metric_type())?;
    value.encode(family.encode_family(&labels)?)?;
    for (labels, value) in values {
        value.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
