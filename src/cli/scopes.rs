//! What commands that need no cluster are given: a configuration, scopes, and who does it.

use std::io::Write;
use std::path::PathBuf;

use anyhow::bail;
use serde::Serialize;

use super::config::{Config, Namespace};
use crate::api::values::ArmId;

/// Arguments of commands that need no cluster.
#[derive(Debug, clap::Args)]
pub struct Scopes {
    /// The configuration file (docs/configuration.md): whose rules are ours, which cloud, and who we are.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// A subscription, resource group or virtual machine, by its id; may be given again. Left out: every scope of the
    /// configuration.
    #[arg(long, value_name = "ID")]
    scope: Vec<String>,
    /// The credential of the configuration to do it with. Left out: that of the namespace that has the scope, or the only
    /// one.
    #[arg(long, value_name = "NAME")]
    credential: Option<String>,
    /// How to show the outcome.
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

impl Scopes {
    /// The configuration.
    ///
    /// # Errors
    /// When it cannot be read, or says what cannot be.
    pub(super) fn config(&self) -> anyhow::Result<Config> {
        Ok(Config::load(&self.config)?)
    }

    /// What was asked for, each with the credential to do it with.
    ///
    /// # Errors
    /// When an id is none, nobody is known to do it, or there is nothing.
    pub(super) fn of(&self, config: &Config) -> anyhow::Result<Vec<(ArmId, String)>> {
        let (given, credential) = (&self.scope, self.credential.as_deref());
        let names: Vec<&str> = config.credentials.iter().map(|credential| credential.name.as_str()).collect();
        if let Some(name) = credential
            && !names.contains(&name)
        {
            bail!(
                "--credential {name}: the configuration has no such credential; it has {}",
                names.join(", ")
            );
        }
        let own = |scope: &ArmId| {
            let of = |namespace: &&Namespace| namespace.scopes.iter().any(|own| own.contains(scope));
            config.namespaces.iter().find(of).map(|namespace| namespace.credential.clone())
        };
        let mut scopes = Vec::new();
        for text in given {
            let scope = ArmId::parse(text).map_err(|error| anyhow::anyhow!("--scope {text}: {error}"))?;
            if scope.resource_type().is_some() && !scope.is_virtual_machine() {
                bail!("--scope {text}: give the id of a subscription, a resource group or a virtual machine");
            }
            let only = match names.as_slice() {
                [only] => Some((*only).to_owned()),
                _ => None,
            };
            let Some(credential) = credential.map(str::to_owned).or_else(|| own(&scope)).or(only) else {
                bail!(
                    "--scope {text}: no namespace of the configuration has it; say with --credential who is to do it"
                );
            };
            scopes.push((scope, credential));
        }
        if given.is_empty() {
            for namespace in &config.namespaces {
                for scope in &namespace.scopes {
                    let credential = credential.unwrap_or(&namespace.credential);
                    scopes.push((scope.clone(), credential.to_owned()));
                }
            }
        }
        if scopes.is_empty() {
            bail!("there is nothing to do: the configuration has no namespaces; give --scope");
        }
        Ok(scopes)
    }

    /// Shows what came of it, as it was asked for.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub(super) fn show<R: Serialize>(
        &self,
        report: &R,
        table: impl Fn(&R, &mut dyn Write) -> std::io::Result<()>,
        out: &mut dyn Write,
    ) -> anyhow::Result<()> {
        match self.output {
            Output::Table => table(report, out)?,
            Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(report)?)?,
        }
        Ok(())
    }
}
