//! Names, asked for as long as this is not dropped.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use smartgroups::Change;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use super::ask::{Asker, ask};
use super::{Answer, Book, DnsName, NameStatus, Question, Rules};

/// How many questions are open at once: a thousand names that are due together are asked for in a
/// second or two, and no server is flooded.
const AT_ONCE: usize = 32;
/// How long nothing is due if nobody says so before.
const IDLE: Duration = Duration::from_secs(3_600);

/// Which names are asked for, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The names.
    pub names: BTreeSet<DnsName>,
    /// Who is asked; nobody stated: the servers of the machine.
    pub servers: Vec<SocketAddr>,
    /// Which answers are taken, and for how long.
    pub rules: Rules,
}

/// The addresses of a name are others; [`Names::change`] says which.
///
/// It does not hold them itself: what waits is then as new as what is read last, and nothing that was
/// learned under other settings arrives after they have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    /// Which name.
    pub name: DnsName,
    /// When the answer came.
    pub received: Instant,
}

/// See the module.
#[derive(Debug)]
pub struct Names {
    shared: Arc<Shared>,
    _task: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    book: Mutex<Book>,
    servers: Mutex<Vec<SocketAddr>>,
    /// There are other names to ask for.
    other: Notify,
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn servers(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Names {
    /// None yet, and where it will be said that their addresses are others.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn spawn(learned: mpsc::Sender<Learned>) -> Self {
        let shared = Arc::new(Shared {
            book: Mutex::new(Book::new(Rules::default())),
            servers: Mutex::default(),
            other: Notify::new(),
        });
        let mut task = JoinSet::new();
        task.spawn(keep_asking(Arc::clone(&shared), learned));
        Self { shared, _task: task }
    }

    /// Asks for exactly these names from now on. Returns what that changes at once: names that are not
    /// asked for any more, and addresses that are refused now.
    pub fn follow(&self, settings: &Settings) -> Vec<Change> {
        let mut book = self.shared.book();
        let now = Instant::now();
        let (gone, changed) = book.follow(&settings.names, settings.rules.clone(), now);
        let before = std::mem::replace(&mut *self.shared.servers(), settings.servers.clone());
        if before != settings.servers {
            book.ask_again(now);
        }
        self.shared.other.notify_one();
        gone.iter().chain(&changed).map(|name| book.change(name)).collect()
    }

    /// Addresses that are known of a name although it was not asked for yet.
    pub fn recall(&self, name: &DnsName, addresses: &[IpAddr]) {
        self.shared.book().recall(name, addresses, Instant::now());
    }

    /// What a name is now; `None` if it is not asked for.
    pub fn change(&self, name: &DnsName) -> Option<Change> {
        let book = self.shared.book();
        book.has(name).then(|| book.change(name))
    }

    /// How well each name is known.
    pub fn status(&self) -> Vec<NameStatus> {
        self.shared.book().status()
    }
}

/// Asks what is due, for ever.
async fn keep_asking(shared: Arc<Shared>, learned: mpsc::Sender<Learned>) {
    let mut asker = Asker::default();
    let mut open: JoinSet<(Question, Answer)> = JoinSet::new();
    loop {
        let due = shared.book().due(Instant::now(), AT_ONCE - open.len());
        if !due.is_empty() {
            let servers = shared.servers().clone();
            let resolver = asker.resolver(&servers);
            for question in due {
                let resolver = resolver.clone();
                open.spawn(async move { (question.clone(), asked(resolver, question).await) });
            }
        }
        // With all places taken only an answer makes room.
        let next = if open.len() < AT_ONCE { shared.book().next() } else { None };
        let next = next.unwrap_or_else(|| Instant::now() + IDLE);
        tokio::select! {
            () = shared.other.notified() => {}
            Some(answered) = open.join_next() => {
                let Ok((question, answer)) = answered else { continue };
                let now = Instant::now();
                if hear(&shared, &question, answer, now) {
                    let news = Learned { name: question.name, received: now };
                    if learned.send(news).await.is_err() {
                        return;
                    }
                }
            }
            () = tokio::time::sleep_until(next.into()) => {}
        }
    }
}

/// Asks; a fault of what asks is an answer as well, or the question would stay open for ever.
async fn asked(
    resolver: Result<hickory_resolver::TokioResolver, String>,
    question: Question,
) -> Answer {
    let resolver = match resolver {
        Ok(resolver) => resolver,
        Err(none) => return Answer::Failed(none),
    };
    let mut one = JoinSet::new();
    one.spawn(ask(resolver, question.clone()));
    match one.join_next().await {
        Some(Ok(answer)) => answer,
        Some(Err(_)) | None => {
            error!(name = %question.name, "a question died of a fault of its own");
            Answer::Failed("the question died of a fault of its own".to_owned())
        }
    }
}

/// Writes an answer down; says whether addresses came or went.
fn hear(shared: &Shared, question: &Question, answer: Answer, now: Instant) -> bool {
    let heard = shared.book().hear(question, answer, now);
    let name = &question.name;
    if let Some(fault) = heard.fault {
        warn!(%name, "{fault}");
    }
    if heard.recovered {
        info!(%name, "the name is answered again as it should be");
    }
    if heard.changed {
        debug!(%name, "the addresses of a name are others");
    }
    heard.changed
}
