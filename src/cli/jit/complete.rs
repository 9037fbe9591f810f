//! `kubectl jit __complete`: what could come next, in the protocol of kubectl's own completion.
//!
//! kubectl asks the program `kubectl_complete-jit` on PATH, which asks this. The answer is one candidate a line,
//! perhaps with a tab and a description, and a last line that says what else the shell may do (`:4`: do not offer
//! files). Whatever goes wrong, there is an answer, soon, and nothing on standard error.

use std::io::Write;
use std::time::Duration;

use clap::{ArgAction, CommandFactory, FromArgMatches};
use kube::api::ListParams;
use kube::config::Kubeconfig;

use super::Cli;
use super::cluster::{Access, Cluster, every};
use super::failure::Failure;
use super::text::plain;
use super::view;
use crate::api::JitAccessRequest;

/// How long the cluster is waited for: nobody waits longer for a completion.
const PATIENCE: Duration = Duration::from_secs(2);
/// "Do not offer files."
const NO_FILES: &str = ":4";
/// "Offer files."
const FILES: &str = ":0";

/// Answers for the words after `kubectl jit`, of which the last is being typed.
///
/// # Errors
/// When the answer cannot be written.
pub async fn run(words: &[String], out: &mut dyn Write) -> std::io::Result<()> {
    let place = Place::find(words);
    let candidates = match tokio::time::timeout(PATIENCE, place.candidates()).await {
        Ok(Ok(candidates)) => candidates,
        Ok(Err(_)) | Err(_) => Vec::new(),
    };
    for (word, description) in candidates {
        let word = format!("{}{word}", place.kept);
        if !word.starts_with(&place.typed) {
            continue;
        }
        match plain(&description).as_str() {
            "" => writeln!(out, "{}", plain(&word))?,
            description => writeln!(out, "{}\t{description}", plain(&word))?,
        }
    }
    let files = place.wanted == Wanted::Value("kubeconfig".to_owned());
    writeln!(out, "{}", if files { FILES } else { NO_FILES })
}

/// What is wanted next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    Command,
    Flag,
    /// The value of a flag, by the flag's id.
    Value(String),
    /// The only argument without a flag.
    Argument,
    Nothing,
}

/// Where in the command line the cursor is.
struct Place {
    command: clap::Command,
    /// The name of the subcommand, once it is there.
    name: String,
    wanted: Wanted,
    /// What the word being typed begins with.
    typed: String,
    /// What of it is settled: earlier values of a list.
    kept: String,
    /// The argument without a flag, where it stands already.
    argument: Option<String>,
    access: Access,
}

impl Place {
    fn find(words: &[String]) -> Self {
        let mut root = Cli::command();
        root.build();
        let (typed, before) =
            words.split_last().map_or(("", [].as_slice()), |(last, rest)| (last.as_str(), rest));
        let mut place = Self {
            name: String::new(),
            wanted: Wanted::Nothing,
            typed: typed.to_owned(),
            kept: String::new(),
            argument: None,
            access: access(&root, words),
            command: root,
        };
        let mut value_of: Option<String> = None;
        for word in before {
            if value_of.take().is_some() {
                continue;
            }
            if let Some(flag) = word.strip_prefix('-').filter(|flag| !flag.is_empty()) {
                value_of = place.takes_value(flag).filter(|_| !word.contains('='));
            } else if place.name.is_empty() {
                let Some(found) = place.command.find_subcommand(word).cloned() else { break };
                place.name.clone_from(word);
                place.command = found;
            } else {
                place.argument = Some(word.clone());
            }
        }
        place.want(value_of);
        place
    }

    fn want(&mut self, value_of: Option<String>) {
        let inline = self.typed.clone();
        self.wanted = if let Some(flag) = value_of {
            Wanted::Value(flag)
        } else if let Some((flag, value)) = inline.strip_prefix("--").and_then(|rest| rest.split_once('=')) {
            value.clone_into(&mut self.typed);
            self.takes_value(&format!("-{flag}")).map_or(Wanted::Nothing, Wanted::Value)
        } else if self.typed.starts_with('-') {
            Wanted::Flag
        } else if self.name.is_empty() {
            Wanted::Command
        } else if self.argument.is_none() {
            Wanted::Argument
        } else {
            Wanted::Nothing
        };
        if matches!(&self.wanted, Wanted::Value(flag) if self.is_list(flag))
            && let Some((kept, _)) = self.typed.rsplit_once(',')
        {
            self.kept = format!("{kept},");
        }
    }

    /// The id of the flag that takes a value, by what follows its first dash.
    fn takes_value(&self, flag: &str) -> Option<String> {
        let long = flag.strip_prefix('-').map(|long| long.split('=').next().unwrap_or(long));
        let found = self.command.get_arguments().find(|argument| match long {
            Some(long) => argument.get_long() == Some(long),
            None => flag.len() == 1 && argument.get_short() == flag.chars().next(),
        })?;
        let takes = matches!(found.get_action(), ArgAction::Set | ArgAction::Append);
        takes.then(|| found.get_id().to_string())
    }

    fn is_list(&self, flag: &str) -> bool {
        self.command
            .get_arguments()
            .any(|argument| argument.get_id() == flag && argument.get_value_delimiter().is_some())
    }

    async fn candidates(&self) -> Result<Vec<(String, String)>, Failure> {
        match &self.wanted {
            Wanted::Nothing => Ok(Vec::new()),
            Wanted::Command => Ok(self.commands()),
            Wanted::Flag => Ok(self.flags()),
            Wanted::Value(flag) => self.values(flag).await,
            Wanted::Argument => self.arguments().await,
        }
    }

    fn commands(&self) -> Vec<(String, String)> {
        self.command
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
            .map(|command| (command.get_name().to_owned(), said(command.get_about())))
            .collect()
    }

    fn flags(&self) -> Vec<(String, String)> {
        self.command
            .get_arguments()
            .filter(|argument| !argument.is_hide_set())
            .filter_map(|argument| Some((format!("--{}", argument.get_long()?), said(argument.get_help()))))
            .collect()
    }

    async fn values(&self, flag: &str) -> Result<Vec<(String, String)>, Failure> {
        match flag {
            "context" => Ok(contexts(&self.access)),
            "policy" => policies(&self.connect().await?).await,
            "target" => self.targets().await,
            _ => {
                let argument = self.command.get_arguments().find(|argument| argument.get_id() == flag);
                Ok(argument.map(possible).unwrap_or_default())
            }
        }
    }

    async fn connect(&self) -> Result<Cluster, Failure> {
        Cluster::connect(&self.access, false).await
    }

    async fn arguments(&self) -> Result<Vec<(String, String)>, Failure> {
        let fits: fn(&JitAccessRequest) -> bool = match self.name.as_str() {
            "request" => return policies(&self.connect().await?).await,
            "describe" => |_| true,
            "approve" | "deny" => |request| view::state(request).is_waiting(),
            "revoke" => |request| view::state(request).holds_rules(),
            "end" => |request| !view::state(request).is_last(),
            _ => {
                let argument = self.command.get_positionals().next();
                return Ok(argument.map(possible).unwrap_or_default());
            }
        };
        let requests = every(&self.connect().await?.requests(), ListParams::default()).await?;
        Ok(requests.iter().filter(|request| fits(request)).map(described).collect())
    }

    /// The targets of the policy that is named before.
    async fn targets(&self) -> Result<Vec<(String, String)>, Failure> {
        let Some(policy) = &self.argument else { return Ok(Vec::new()) };
        let policy = self.connect().await?.policies().get(policy).await?.0;
        let scopes = |name: &str| {
            policy.spec.targets.iter().any(|target| target.name == name && target.azure_scope.is_some())
        };
        let entries = policy.spec.targets.iter().map(|target| {
            let what = if target.azure_scope.is_some() { "every machine of the scope" } else { "a machine" };
            (target.name.clone(), what.to_owned())
        });
        let found = policy.status.iter().flat_map(|status| &status.targets);
        let machines = found.filter(|machine| scopes(&machine.name)).filter_map(|machine| {
            let name = machine.id.rsplit('/').next()?;
            Some((format!("{}/{name}", machine.name), "a machine of the scope".to_owned()))
        });
        Ok(entries.chain(machines).collect())
    }
}

/// How to reach the cluster, as far as the words say so already.
fn access(root: &clap::Command, words: &[String]) -> Access {
    let parser = clap::Command::new("access").ignore_errors(true).disable_help_flag(true);
    let parser = <Access as clap::Args>::augment_args(parser);
    let known: Vec<(Option<char>, Option<String>)> = parser
        .get_arguments()
        .map(|argument| (argument.get_short(), argument.get_long().map(str::to_owned)))
        .collect();
    // Of all the words, those flags alone: the parser knows no others.
    let mut chosen = vec![root.get_name().to_owned()];
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let long = word.strip_prefix("--");
        let name = long.map(|long| long.split('=').next().unwrap_or(long).to_owned());
        let short =
            if long.is_some() { None } else { word.strip_prefix('-').and_then(|rest| rest.chars().next()) };
        let is_known =
            known.iter().any(|(s, l)| (short.is_some() && *s == short) || (name.is_some() && *l == name));
        if is_known {
            chosen.push(word.clone());
            let inline = word.contains('=') || (short.is_some() && word.len() > 2);
            if !inline {
                chosen.extend(words.next().cloned());
            }
        }
    }
    let matches = parser.try_get_matches_from(chosen);
    matches.and_then(|matches| Access::from_arg_matches(&matches)).unwrap_or_default()
}

fn said(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(ToString::to_string).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

fn possible(argument: &clap::Arg) -> Vec<(String, String)> {
    argument
        .get_possible_values()
        .iter()
        .map(|value| (value.get_name().to_owned(), said(value.get_help())))
        .collect()
}

fn described(request: &JitAccessRequest) -> (String, String) {
    let asked = view::summary(request);
    let who = request.spec.requester.as_ref().map(|user| user.username.clone()).unwrap_or_default();
    let text =
        format!("{}: {who} asks for {} of {}", view::state(request).as_str(), asked.ports, asked.targets);
    (request.metadata.name.clone().unwrap_or_default(), text)
}

async fn policies(cluster: &Cluster) -> Result<Vec<(String, String)>, Failure> {
    let found = every(&cluster.policies(), ListParams::default()).await?;
    let described = found.into_iter().map(|policy| {
        let summary = policy.status.and_then(|status| status.summary).unwrap_or_default();
        let text = format!(
            "ports {}, machines {}",
            summary.ports.unwrap_or_default(),
            summary.machines.unwrap_or_default()
        );
        (policy.metadata.name.unwrap_or_default(), text)
    });
    Ok(described.collect())
}

fn contexts(access: &Access) -> Vec<(String, String)> {
    let file = access.kubeconfig.as_ref().map_or_else(Kubeconfig::read, Kubeconfig::read_from);
    let contexts = file.map(|file| file.contexts).unwrap_or_default();
    contexts.into_iter().map(|context| (context.name, String::new())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(line: &[&str]) -> Place {
        Place::find(&line.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    fn answer(line: &[&str]) -> String {
        let words: Vec<String> = line.iter().map(ToString::to_string).collect();
        let mut out = Vec::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(&words, &mut out)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_cursor_is_found_among_the_words() {
        for (line, wanted) in [
            (vec![""], Wanted::Command),
            (vec!["re"], Wanted::Command),
            (vec!["-n", ""], Wanted::Value("namespace".into())),
            (vec!["-n", "team-web", ""], Wanted::Command),
            (vec!["approve", ""], Wanted::Argument),
            (vec!["approve", "disk-full", ""], Wanted::Nothing),
            (vec!["approve", "--yes", ""], Wanted::Argument),
            (vec!["approve", "--"], Wanted::Flag),
            (vec!["list", "-o", ""], Wanted::Value("output".into())),
            (vec!["list", "--output=j"], Wanted::Value("output".into())),
            (vec!["request", "web", "--target", ""], Wanted::Value("target".into())),
            (vec!["request", "web", "-t=x", ""], Wanted::Nothing),
            (vec!["nonsense", "x", ""], Wanted::Command),
        ] {
            assert_eq!(place(&line).wanted, wanted, "{line:?}");
        }
        let list = place(&["request", "web", "--target", "a,b"]);
        assert_eq!((list.kept.as_str(), list.argument.as_deref()), ("a,", Some("web")));
    }

    #[test]
    fn the_way_to_the_cluster_is_read_from_anywhere() {
        let access =
            place(&["-n", "team-web", "approve", "--context=prod", "--kubeconfig", "/f", "-m", "x", ""])
                .access;
        assert_eq!(access.namespace.as_deref(), Some("team-web"));
        assert_eq!(access.context.as_deref(), Some("prod"));
        assert_eq!(access.kubeconfig.as_deref(), Some(std::path::Path::new("/f")));
    }

    #[test]
    fn answers_end_with_what_the_shell_may_do() {
        let commands = answer(&[""]);
        assert!(commands.contains("request\t") && commands.ends_with(":4\n"), "{commands}");
        assert!(!commands.contains("__complete"), "{commands}");
        assert_eq!(answer(&["list", "--output=j"]), "json\tThe objects as JSON\n:4\n");
        assert_eq!(answer(&["completion", "f"]), "fish\n:4\n");
        assert!(answer(&["list", "--w"]).starts_with("--waiting\t"));
        assert_eq!(answer(&["list", "--kubeconfig", ""]), ":0\n");
    }

    #[test]
    fn without_a_cluster_there_is_an_empty_answer() {
        assert_eq!(answer(&["approve", "--kubeconfig", "/nowhere", ""]), ":4\n");
    }
}
