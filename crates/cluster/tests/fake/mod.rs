//! An API server in miniature: lists in pages, watches from a version on, and forgets what happened
//! when it is told to. What it answers has the form that a real one's answers have; how a real one
//! behaves beyond that is tested against a real one (`crates/forebay/tests/kubernetes.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Objects of a page.
const PAGE: usize = 2;

/// A server that answers as long as its runtime lives.
#[derive(Clone)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    /// Grows with every change.
    news: watch::Sender<u64>,
    port: u16,
}

#[derive(Default)]
struct State {
    version: u64,
    /// By the path of all objects.
    kinds: BTreeMap<String, Stored>,
    forbidden: BTreeSet<String>,
    /// Connections of an earlier epoch are cut.
    epoch: u64,
    down: bool,
}

#[derive(Default)]
struct Stored {
    kind: String,
    namespaced: bool,
    objects: BTreeMap<String, Value>,
    events: Vec<(u64, &'static str, Value)>,
    /// Watches from before this version are told to list again.
    forgotten: u64,
}

impl Fake {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let fake = Self {
            state: Arc::default(),
            news: watch::Sender::new(0),
            port: listener.local_addr().expect("bound").port(),
        };
        let server = fake.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(server.clone().serve(stream));
            }
        });
        fake
    }

    /// Writes a kubeconfig that leads here.
    pub(crate) fn write_kubeconfig(&self, path: &Path) {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": format!("http://127.0.0.1:{}", self.port)}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
            "users": [{"name": "fake", "user": {}}],
        });
        std::fs::write(path, config.to_string()).expect("a writable folder");
    }

    fn change(&self, what: impl FnOnce(&mut State)) {
        what(&mut self.state.lock().expect("no test panics in here"));
        self.news.send_modify(|n| *n += 1);
    }

    /// Serves a kind from now on, such as `/api/v1/pods`.
    pub(crate) fn install(&self, path: &str, kind: &str, namespaced: bool) {
        self.change(|state| {
            let stored = Stored {
                kind: kind.to_owned(),
                namespaced,
                ..Stored::default()
            };
            state.kinds.insert(path.to_owned(), stored);
        });
    }

    /// Serves a kind no longer.
    pub(crate) fn uninstall(&self, path: &str) {
        self.change(|state| {
            state.kinds.remove(path);
        });
        self.cut();
    }

    pub(crate) fn apply(&self, path: &str, mut object: Value) {
        self.change(|state| {
            state.version += 1;
            object["metadata"]["resourceVersion"] = state.version.to_string().into();
            let stored = state.kinds.get_mut(path).expect("an installed kind");
            let name = object["metadata"]["name"]
                .as_str()
                .expect("a name")
                .to_owned();
            let before = stored.objects.insert(name, object.clone());
            let event = if before.is_none() {
                "ADDED"
            } else {
                "MODIFIED"
            };
            stored.events.push((state.version, event, object));
        });
    }

    pub(crate) fn delete(&self, path: &str, name: &str) {
        self.change(|state| {
            state.version += 1;
            let stored = state.kinds.get_mut(path).expect("an installed kind");
            let mut object = stored.objects.remove(name).expect("an object");
            object["metadata"]["resourceVersion"] = state.version.to_string().into();
            stored.events.push((state.version, "DELETED", object));
        });
    }

    /// Forgets what has happened to a kind: who wants to know has to list.
    pub(crate) fn forget(&self, path: &str) {
        self.change(|state| {
            state.version += 1;
            let version = state.version;
            let stored = state.kinds.get_mut(path).expect("an installed kind");
            stored.events.clear();
            stored.forgotten = version;
        });
    }

    pub(crate) fn forbid(&self, path: &str, forbidden: bool) {
        self.change(|state| {
            match forbidden {
                true => state.forbidden.insert(path.to_owned()),
                false => state.forbidden.remove(path),
            };
        });
    }

    /// Cuts every connection.
    pub(crate) fn cut(&self) {
        self.change(|state| state.epoch += 1);
    }

    /// Cuts every connection, and new ones as well until it is up again.
    pub(crate) fn set_down(&self, down: bool) {
        self.change(|state| {
            state.epoch += 1;
            state.down = down;
        });
    }

    fn epoch(&self) -> Option<u64> {
        let state = self.state.lock().expect("no test panics in here");
        (!state.down).then_some(state.epoch)
    }

    async fn serve(self, stream: TcpStream) {
        let Some(epoch) = self.epoch() else { return };
        let mut news = self.news.subscribe();
        let cut = news.wait_for(|_| self.epoch() != Some(epoch));
        tokio::select! {
            _ = cut => {}
            _ = self.answer_all(stream) => {}
        }
    }

    async fn answer_all(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let target = line.split(' ').nth(1).unwrap_or("/").to_owned();
            let mut length = 0;
            loop {
                let mut field = String::new();
                stream.read_line(&mut field).await?;
                if field.trim().is_empty() {
                    break;
                }
                if let Some(value) = field.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap_or(0);
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await?;
            let (path, query) = target.split_once('?').unwrap_or((&target, ""));
            let query: BTreeMap<&str, &str> =
                query.split('&').filter_map(|q| q.split_once('=')).collect();
            match self.answer(path, &query) {
                Answer::Whole(status, value) => {
                    let text = value.to_string();
                    let length = text.len();
                    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n");
                    stream.write_all((head + &text).as_bytes()).await?;
                }
                Answer::Watch(stored, since) => return self.watch(stream, &stored, since).await,
            }
        }
    }

    fn answer(&self, path: &str, query: &BTreeMap<&str, &str>) -> Answer {
        let state = self.state.lock().expect("no test panics in here");
        let refusal = |status: u16, message: &str| {
            let value = json!({"kind": "Status", "code": status, "message": message});
            Answer::Whole(status, value)
        };
        let Some(stored) = state.kinds.get(path) else {
            return match state.resources(path) {
                Some(resources) => Answer::Whole(200, resources),
                None => refusal(404, "the server could not find the requested resource"),
            };
        };
        if state.forbidden.contains(path) {
            return refusal(403, "you may not read this");
        }
        if query.contains_key("watch") {
            let since = query["resourceVersion"].parse().expect("a version");
            return Answer::Watch(path.to_owned(), since);
        }
        let start: usize = query
            .get("continue")
            .map_or(0, |n| n.parse().expect("ours"));
        let mut rest = stored.objects.values().skip(start);
        let items: Vec<&Value> = rest.by_ref().take(PAGE).collect();
        let next = rest.next().map(|_| (start + PAGE).to_string());
        let metadata = json!({"resourceVersion": state.version.to_string(), "continue": next});
        Answer::Whole(200, json!({"metadata": metadata, "items": items}))
    }

    async fn watch(
        &self,
        mut stream: BufReader<TcpStream>,
        path: &str,
        mut since: u64,
    ) -> std::io::Result<()> {
        let mut news = self.news.subscribe();
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await?;
        loop {
            news.borrow_and_update();
            let lines = self.events(path, &mut since);
            for line in lines {
                let line = line.to_string() + "\n";
                let chunk = format!("{:x}\r\n{line}\r\n", line.len());
                // In two pieces, as the network may deliver it.
                let (first, second) = chunk.split_at(chunk.len() / 2);
                stream.write_all(first.as_bytes()).await?;
                stream.flush().await?;
                stream.write_all(second.as_bytes()).await?;
            }
            stream.flush().await?;
            if news.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    fn events(&self, path: &str, since: &mut u64) -> Vec<Value> {
        let state = self.state.lock().expect("no test panics in here");
        let Some(stored) = state.kinds.get(path) else {
            return Vec::new();
        };
        if *since < stored.forgotten {
            let status =
                json!({"kind": "Status", "code": 410, "message": "too old resource version"});
            *since = u64::MAX;
            return vec![json!({"type": "ERROR", "object": status})];
        }
        let new = stored.events.iter().filter(|(version, ..)| version > since);
        let lines = new.map(|(_, kind, object)| json!({"type": kind, "object": object}));
        let lines = lines.collect();
        *since = (*since).max(state.version);
        lines
    }
}

enum Answer {
    Whole(u16, Value),
    Watch(String, u64),
}

impl State {
    /// What there is of a group's version, as discovery tells it.
    fn resources(&self, version: &str) -> Option<Value> {
        let own = self.kinds.iter().filter_map(|(path, stored)| {
            let plural = path.strip_prefix(version)?.strip_prefix('/')?;
            (!plural.contains('/')).then(|| {
                json!({
                    "name": plural, "kind": stored.kind, "namespaced": stored.namespaced,
                    "verbs": ["get", "list", "watch"],
                })
            })
        });
        let own: Vec<Value> = own.collect();
        (!own.is_empty()).then(|| json!({ "resources": own }))
    }
}
