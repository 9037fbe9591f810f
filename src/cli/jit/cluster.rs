//! The way to the API server: the user's own kubeconfig, and nothing else.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use axum::http::Response;
use jiff::Timestamp;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::{ListParams, PostParams};
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use tower::util::MapResponseLayer;

use super::failure::{Failure, chain};
use super::text::plain;
use crate::api::{GROUP, JitAccessRequest, JitAccessReview, JitPolicy, Tolerant, UserInfo};
use crate::clock::Clock;
use crate::controllers::connection;

/// How long the first word with the API server may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How many objects are asked for at once.
const PAGE: u32 = 500;

/// Flags that kubectl has too.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Options of kubectl")]
pub struct Access {
    /// The namespace; left out: that of the context.
    #[arg(short, long, global = true, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// The context of the kubeconfig; left out: the current one.
    #[arg(long, global = true, value_name = "CONTEXT")]
    pub context: Option<String>,
    /// The kubeconfig; left out: KUBECONFIG, or ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Act as this user, where you may impersonate.
    #[arg(long = "as", global = true, value_name = "USER")]
    pub as_user: Option<String>,
    /// Act as a member of this group; may be given several times.
    #[arg(long, global = true, value_name = "GROUP", requires = "as_user")]
    pub as_group: Vec<String>,
}

/// A connection, and the namespace that commands are about.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    clock: Clock,
    /// The namespace.
    pub namespace: String,
}

impl Cluster {
    /// Reads the kubeconfig. Nothing is sent yet.
    ///
    /// # Errors
    /// When there is none, or it does not say what is asked for.
    pub async fn connect(access: &Access, warnings: bool) -> Result<Self, Failure> {
        // Before anything opens a connection: the libraries find the provider by this global.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut config = configuration(access).await?;
        config.connect_timeout = Some(CONNECT);
        if let Some(user) = &access.as_user {
            config.auth_info.impersonate = Some(user.clone());
            config.auth_info.impersonate_groups = Some(access.as_group.clone());
        }
        let namespace = access.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let builder = ClientBuilder::try_from(config)?;
        let client = if warnings {
            builder.with_layer(&MapResponseLayer::new(tell_warnings)).build()
        } else {
            builder.build()
        };
        Ok(Self { client, clock: Clock::system(), namespace })
    }

    /// What the time is.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Another namespace, by the same way.
    #[must_use]
    pub fn of(&self, namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), ..self.clone() }
    }

    fn api<K>(&self) -> Api<Tolerant<K>>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Requests of the namespace.
    #[must_use]
    pub fn requests(&self) -> Api<Tolerant<JitAccessRequest>> {
        self.api()
    }

    /// Reviews of the namespace.
    #[must_use]
    pub fn reviews(&self) -> Api<Tolerant<JitAccessReview>> {
        self.api()
    }

    /// Policies of the namespace.
    #[must_use]
    pub fn policies(&self) -> Api<Tolerant<JitPolicy>> {
        self.api()
    }

    /// Requests of all namespaces.
    #[must_use]
    pub fn all_requests(&self) -> Api<Tolerant<JitAccessRequest>> {
        Api::all(self.client.clone())
    }

    /// The client, for what is not ours.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// A request by its name.
    ///
    /// # Errors
    /// When there is none, or it may not be read.
    pub async fn request(&self, name: &str) -> Result<JitAccessRequest, Failure> {
        Ok(self.requests().get(name).await?.0)
    }

    /// Who the API server takes the user for.
    ///
    /// # Errors
    /// When it does not say.
    pub async fn whoami(&self) -> Result<UserInfo, Failure> {
        Ok(connection::whoami(&self.client).await?)
    }

    /// Whether the user may `approve` a policy of the namespace, by the API server's word.
    ///
    /// # Errors
    /// When it does not say.
    pub async fn may_approve(&self, policy: &str) -> Result<bool, Failure> {
        let api: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let attributes = ResourceAttributes {
            namespace: Some(self.namespace.clone()),
            verb: Some("approve".to_owned()),
            group: Some(GROUP.to_owned()),
            resource: Some("jitpolicies".to_owned()),
            name: Some(policy.to_owned()),
            ..ResourceAttributes::default()
        };
        let question = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let answer = api.create(&PostParams::default(), &question).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }
}

/// Every object that the parameters select, page by page.
///
/// # Errors
/// When they may not be read.
pub async fn every<K>(api: &Api<Tolerant<K>>, parameters: ListParams) -> Result<Vec<K>, Failure>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
    Tolerant<K>: Clone + std::fmt::Debug,
{
    let mut found = Vec::new();
    let mut parameters = parameters.limit(PAGE);
    loop {
        let page = api.list(&parameters).await?;
        found.extend(page.items.into_iter().map(|object| object.0));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters.continue_token = Some(token),
            None => return Ok(found),
        }
    }
}

async fn configuration(access: &Access) -> Result<Config, Failure> {
    let options = KubeConfigOptions { context: access.context.clone(), ..KubeConfigOptions::default() };
    let wrong =
        |error: KubeconfigError| Failure::error(format!("the kubeconfig cannot be used: {}", chain(&error)));
    let file = match &access.kubeconfig {
        Some(path) => Kubeconfig::read_from(path)
            .map_err(|error| Failure::error(format!("--kubeconfig {}: {}", path.display(), chain(&error))))?,
        None => match Kubeconfig::read() {
            Ok(file) => file,
            // In a pod, as kubectl does.
            Err(error) => return Config::incluster().map_err(|_| wrong(error)),
        },
    };
    Config::from_custom_kubeconfig(file, &options).await.map_err(wrong)
}

/// Shows the warnings of an answer, as kubectl does: admission policies speak by them.
fn tell_warnings<B>(answer: Response<B>) -> Response<B> {
    for value in answer.headers().get_all("warning") {
        let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
        // `299 - "text"`
        let text = text.splitn(3, ' ').nth(2).unwrap_or(&text).trim_matches('"').replace("\\\"", "\"");
        // Nobody is left to be told where standard error is closed.
        let _ = writeln!(std::io::stderr(), "Warning: {}", plain(&text));
    }
    answer
}
