//! Tokens: one for all calls of a credential, fetched by one for all who wait, and ahead of its end.
//!
//! Guarantees: a token is used to its end when no new one can be had; a refresh ahead of time keeps nobody
//! waiting; those who wait for the same refresh share its outcome, also when it fails. Nothing here or in
//! [`sources`] writes a secret to a log, an error or debug output.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use tokio::time::Instant;

pub(super) mod sources;

/// Reads what a token endpoint answers.
pub(super) fn understand(answer: &serde_json::Value) {
    let _ = sources::lifetime(answer, jiff::Timestamp::UNIX_EPOCH);
}

/// A token as a source gives it.
#[derive(Debug)]
pub struct Fetched {
    /// The bearer token.
    pub secret: SecretString,
    /// How long it lives, counted from the moment at which it was asked for.
    pub lifetime: Duration,
}

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The endpoint could not be reached, or failed. It may be better later.
    #[error("failed to get a token: {0}")]
    Unavailable(String),
    /// The credential is refused, or a file that belongs to it cannot be read.
    #[error("the credential is refused: {0}")]
    Refused(String),
}

/// Where tokens come from.
#[async_trait]
pub trait TokenSource: Send + Sync {
    /// A new token.
    ///
    /// # Errors
    /// [`TokenError`], without anything secret in it.
    async fn fetch(&self) -> Result<Fetched, TokenError>;
}

/// A token in use.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) secret: SecretString,
    fetched: Instant,
    /// It came in place of one that was refused.
    replacement: bool,
    refresh: Instant,
    end: Instant,
}

/// How long one fetch may take.
const FETCH_TIME: Duration = Duration::from_secs(20);
/// A token is not sent in its last seconds: it would end under way.
const MARGIN: Duration = Duration::from_secs(5);
/// How long before its end a token is refreshed, unless it lives but briefly.
const AHEAD: Duration = Duration::from_secs(15 * 60);
/// A replacement this young that Resource Manager refuses too would not be the last.
const YOUNG: Duration = Duration::from_secs(30);
/// Between two refreshes ahead of time that fail.
const PAUSE: Duration = Duration::from_secs(15);

/// The tokens of one credential.
pub(super) struct Tokens {
    source: Box<dyn TokenSource>,
    current: RwLock<Option<Arc<Token>>>,
    /// Held while fetching; what the last fetch said when it failed.
    fetching: tokio::sync::Mutex<Option<TokenError>>,
    /// Fetches that have ended.
    fetches: AtomicU64,
    /// No refresh ahead of time before then.
    pause: Mutex<Option<Instant>>,
}

impl Tokens {
    pub(super) fn new(source: Box<dyn TokenSource>) -> Self {
        Self {
            source,
            current: RwLock::new(None),
            fetching: tokio::sync::Mutex::new(None),
            fetches: AtomicU64::new(0),
            pause: Mutex::new(None),
        }
    }

    /// A token that is good now.
    pub(super) async fn get(self: &Arc<Self>) -> Result<Arc<Token>, TokenError> {
        if let Some(token) = self.valid() {
            if token.refresh <= Instant::now() {
                self.refresh_ahead();
            }
            return Ok(token);
        }
        self.fetch(None).await
    }

    /// A token in place of one that Resource Manager refused. Replacements are not themselves replaced for a
    /// while: a credential that is refused for good must not have tokens fetched for every call.
    pub(super) async fn replace(self: &Arc<Self>, refused: &Arc<Token>) -> Result<Arc<Token>, TokenError> {
        if refused.replacement && refused.fetched.elapsed() < YOUNG {
            return Err(TokenError::Refused("Resource Manager does not accept new tokens either".into()));
        }
        self.fetch(Some(refused)).await
    }

    /// The current token, if it is good for a call and not the one that was refused.
    fn usable(&self, refused: Option<&Arc<Token>>) -> Option<Arc<Token>> {
        self.valid().filter(|token| refused.is_none_or(|refused| !Arc::ptr_eq(token, refused)))
    }

    fn valid(&self) -> Option<Arc<Token>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().filter(|token| Instant::now() < token.end).cloned()
    }

    async fn fetch(&self, refused: Option<&Arc<Token>>) -> Result<Arc<Token>, TokenError> {
        let seen = self.fetches.load(Ordering::SeqCst);
        let mut failure = self.fetching.lock().await;
        if let Some(token) = self.usable(refused) {
            return Ok(token);
        }
        // Somebody else fetched while we waited, and failed: asking again at once would say the same.
        if self.fetches.load(Ordering::SeqCst) != seen
            && let Some(failure) = &*failure
        {
            return Err(failure.clone());
        }
        let fetched = self.ask(refused.is_some()).await;
        self.fetches.fetch_add(1, Ordering::SeqCst);
        *failure = fetched.as_ref().err().cloned();
        fetched
    }

    async fn ask(&self, replacement: bool) -> Result<Arc<Token>, TokenError> {
        let asked = Instant::now();
        let fetched = tokio::time::timeout(FETCH_TIME, self.source.fetch())
            .await
            .unwrap_or_else(|_| Err(TokenError::Unavailable(format!("no answer in {FETCH_TIME:?}"))))?;
        let token = Arc::new(Token {
            secret: fetched.secret,
            fetched: asked,
            replacement,
            refresh: asked + fetched.lifetime - AHEAD.min(fetched.lifetime / 3),
            end: asked + fetched.lifetime.saturating_sub(MARGIN),
        });
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&token));
        Ok(token)
    }

    /// Starts a refresh that nobody waits for, unless one is under way or has just failed.
    fn refresh_ahead(self: &Arc<Self>) {
        {
            let mut pause = self.pause.lock().unwrap_or_else(PoisonError::into_inner);
            if pause.is_some_and(|until| Instant::now() < until) {
                return;
            }
            *pause = Some(Instant::now() + PAUSE);
        }
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let Ok(mut failure) = this.fetching.try_lock() else { return };
            let fetched = this.ask(false).await;
            this.fetches.fetch_add(1, Ordering::SeqCst);
            *failure = fetched.as_ref().err().cloned();
            if let Err(error) = fetched {
                tracing::warn!(%error, "failed to refresh a token ahead of its end; the old one stays in use");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use secrecy::ExposeSecret;

    use super::*;

    /// Gives numbered tokens of an hour, each after a second; fails while told to.
    #[derive(Default)]
    struct Numbered {
        asked: AtomicUsize,
        down: std::sync::atomic::AtomicBool,
    }

    #[async_trait]
    impl TokenSource for Arc<Numbered> {
        async fn fetch(&self) -> Result<Fetched, TokenError> {
            let number = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
            tokio::time::sleep(Duration::from_secs(1)).await;
            if self.down.load(Ordering::SeqCst) {
                return Err(TokenError::Unavailable("down".into()));
            }
            Ok(Fetched { secret: format!("t{number}").into(), lifetime: Duration::from_secs(3600) })
        }
    }

    fn tokens() -> (Arc<Numbered>, Arc<Tokens>) {
        let source = Arc::new(Numbered::default());
        (Arc::clone(&source), Arc::new(Tokens::new(Box::new(source))))
    }

    async fn all_get(tokens: &Arc<Tokens>) -> Vec<Result<String, TokenError>> {
        let gets = (0..50).map(|_| async { Ok(tokens.get().await?.secret.expose_secret().to_owned()) });
        futures::future::join_all(gets).await
    }

    #[tokio::test(start_paused = true)]
    async fn many_waiters_share_one_fetch() {
        let (source, tokens) = tokens();
        assert!(all_get(&tokens).await.iter().all(|got| got.as_deref() == Ok("t1")));
        assert_eq!(source.asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn many_waiters_share_one_failure_and_the_next_asks_again() {
        let (source, tokens) = tokens();
        source.down.store(true, Ordering::SeqCst);
        assert!(all_get(&tokens).await.iter().all(Result::is_err));
        assert_eq!(source.asked.load(Ordering::SeqCst), 1);
        source.down.store(false, Ordering::SeqCst);
        assert!(tokens.get().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_refreshed_ahead_of_its_end_and_nobody_waits() {
        let (source, tokens) = tokens();
        tokens.get().await.unwrap();
        tokio::time::sleep(Duration::from_secs(50 * 60)).await;
        let begun = Instant::now();
        assert_eq!(tokens.get().await.unwrap().secret.expose_secret(), "t1");
        assert_eq!(begun.elapsed(), Duration::ZERO);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(tokens.get().await.unwrap().secret.expose_secret(), "t2");
        assert_eq!(source.asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_serves_to_its_end_when_no_new_one_can_be_had() {
        let (source, tokens) = tokens();
        tokens.get().await.unwrap();
        source.down.store(true, Ordering::SeqCst);
        let mut minutes = 0;
        while let Ok(token) = tokens.get().await {
            assert_eq!(token.secret.expose_secret(), "t1");
            tokio::time::sleep(Duration::from_secs(60)).await;
            minutes += 1;
        }
        assert_eq!(minutes, 60);
        assert!(source.asked.load(Ordering::SeqCst) > 5, "it went on trying");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_token_is_replaced_once_for_all_who_used_it() {
        let (source, tokens) = tokens();
        let refused = tokens.get().await.unwrap();
        let replaced = futures::future::join_all((0..50).map(|_| tokens.replace(&refused))).await;
        assert!(replaced.iter().all(|token| token.as_ref().unwrap().secret.expose_secret() == "t2"));
        assert_eq!(source.asked.load(Ordering::SeqCst), 2);
        let replacement = tokens.get().await.unwrap();
        assert!(matches!(tokens.replace(&replacement).await, Err(TokenError::Refused(_))));
        assert_eq!(source.asked.load(Ordering::SeqCst), 2, "refused too: no more for now");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(tokens.replace(&replacement).await.unwrap().secret.expose_secret(), "t3");
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_gives_up_holds_up_nobody() {
        let (source, tokens) = tokens();
        let gave_up = tokio::time::timeout(Duration::from_millis(10), tokens.get()).await;
        assert!(gave_up.is_err());
        assert_eq!(tokens.get().await.unwrap().secret.expose_secret(), "t2");
        assert_eq!(source.asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn debug_output_holds_no_secret() {
        let (_, tokens) = tokens();
        let token = tokens.get().await.unwrap();
        let fetched = Fetched { secret: "hidden".to_owned().into(), lifetime: Duration::ZERO };
        assert!(!format!("{token:?}").contains("t1"), "{token:?}");
        assert!(!format!("{fetched:?}").contains("hidden"), "{fetched:?}");
    }
}
