//! The log level, set anew while the program runs, when the configuration file says so.

use std::path::PathBuf;
use std::time::Duration;

use super::config::Config;
use crate::telemetry::log::Level;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(10);

/// Reads the configuration file again and again, for its log level; of what else was changed in it, it says that a
/// restart is needed. A file that cannot be used changes nothing.
pub async fn follow(file: PathBuf, mut in_force: Config, level: Level) {
    // The first look compares with what was started with, whatever was written since.
    let mut read = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let Ok(text) = tokio::fs::read_to_string(&file).await else { continue };
        if read.as_ref() == Some(&text) {
            continue;
        }
        match Config::parse(&text) {
            Ok(config) => take(&mut in_force, &config, &level),
            Err(error) => {
                tracing::error!(file = %file.display(), %error, "the changed configuration cannot be used; this program goes on with the one before, and would not start again");
            }
        }
        read = Some(text);
    }
}

fn take(in_force: &mut Config, config: &Config, level: &Level) {
    if in_force.log_level != config.log_level {
        match level.set(&config.log_level) {
            Ok(()) => tracing::warn!(level = config.log_level, before = in_force.log_level, "log level set"),
            Err(error) => tracing::error!(%error, "log level not set"),
        }
        in_force.log_level.clone_from(&config.log_level);
    }
    if in_force != config {
        tracing::warn!("the configuration was changed: all but logLevel takes effect at the next start");
    }
}
