//! HTTP routes: what matches, what changes, where it goes.
//!
//! Building a table from rules and finding the rule of a request live in [`crate::matching`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::name::ObjectName;
use crate::pool::AppProtocol;
use crate::snapshot::Certificate;

/// The request line and headers that matching looks at.
pub trait RequestHead {
    /// Host without port, lower case.
    fn host(&self) -> &str;
    /// Path, starting with `/`, without the query.
    fn path(&self) -> &str;
    /// Query without `?`; empty if there is none.
    fn query(&self) -> &str;
    /// Method, as sent.
    fn method(&self) -> &str;
    /// First value of a header; `name` is lower case.
    fn header(&self, name: &str) -> Option<&str>;
}

/// The header by which a route can match the model of the body.
pub const MODEL_HEADER: &str = "x-gateway-model-name";

/// All rules attached to one listener, in order of precedence per host.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct RouteTable {
    /// Rules by exact host, lower case.
    pub exact: BTreeMap<String, Vec<Entry>>,
    /// Rules by wildcard suffix (`.example.com` of `*.example.com`), longest suffix first.
    pub suffix: Vec<(String, Vec<Entry>)>,
    /// Rules for every host.
    pub any: Vec<Entry>,
    /// Whether some rule matches on [`MODEL_HEADER`], so that the body must be read first.
    pub reads_model: bool,
}

/// One match of one rule. Entries of a host are kept in order of precedence, which
/// [`RouteTable::build`] sees to and [`RouteTable::find`] relies on.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// What a request must look like.
    pub matcher: Matcher,
    /// What happens to it.
    pub rule: Arc<Rule>,
}

/// `HTTPRouteMatch`: all of its parts must hold.
#[derive(Clone, PartialEq, Debug)]
pub struct Matcher {
    /// The path.
    pub path: PathMatch,
    /// The method, if it matters.
    pub method: Option<Arc<str>>,
    /// Headers, names in lower case.
    pub headers: Vec<(Arc<str>, TextMatch)>,
    /// Query parameters.
    pub query: Vec<(Arc<str>, TextMatch)>,
}

/// How a path is matched.
#[derive(Clone, PartialEq, Debug)]
pub enum PathMatch {
    /// Equal.
    Exact(Arc<str>),
    /// Equal, or continues with `/`. Kept without a trailing slash; `""` is every path.
    Prefix(Arc<str>),
    /// Matches as a whole (RE2 syntax as the `regex` crate reads it).
    Regex(Pattern),
}

/// How a header or query value is matched.
#[derive(Clone, PartialEq, Debug)]
pub enum TextMatch {
    /// Equal, case kept.
    Exact(Arc<str>),
    /// Matches as a whole.
    Regex(Pattern),
}

/// A compiled regular expression, anchored at both ends; equal if its text is.
#[derive(Clone, Debug)]
pub struct Pattern(Arc<regex::Regex>);

impl Pattern {
    /// Compiles `text` so that it must match a whole value.
    ///
    /// # Errors
    /// What the `regex` crate says of the text, its size limit included.
    pub fn new(text: &str) -> Result<Self, regex::Error> {
        let compile = |text: &str| {
            regex::RegexBuilder::new(text)
                .size_limit(PATTERN_BYTES_MAX)
                .build()
        };
        // By itself first: `a)|(b` is no pattern, but would be one between the anchors.
        compile(text)?;
        compile(&format!("^(?:{text})$")).map(|regex| Self(Arc::new(regex)))
    }

    /// The expression as it is compiled, with its anchors.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Whether the whole of `value` matches.
    #[must_use]
    pub fn is_match(&self, value: &str) -> bool {
        self.0.is_match(value)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

/// Compiled size of one pattern; more is refused, so that a route cannot take the memory.
pub const PATTERN_BYTES_MAX: usize = 256 << 10;

/// One rule of one route.
#[derive(Clone, PartialEq, Debug)]
pub struct Rule {
    /// The `HTTPRoute` or `GRPCRoute`.
    pub route: ObjectName,
    /// Which of the two, and so the form in which a refusal is answered.
    pub speaks: Speaks,
    /// Position of the rule in the route.
    pub index: usize,
    /// Filters in the order given.
    pub filters: Vec<Filter>,
    /// Where requests go; empty answers 500 unless a filter answers.
    pub targets: Vec<WeightedTarget>,
    /// Time limits.
    pub timeouts: Timeouts,
    /// Retries, when the rule asks for them; pools retry before the first byte in any case.
    pub retry: Option<Retry>,
}

/// What the clients of a rule speak.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Speaks {
    /// HTTP: a refusal is a status and a body.
    #[default]
    Http,
    /// gRPC: a refusal is 200 with `grpc-status` and `grpc-message`.
    Grpc,
}

/// Routes of a listener of protocol TLS, by the server name of the client's first message.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct TlsRoutes {
    /// Most specific host first; the first that covers the server name wins.
    pub routes: Vec<(Option<HostPattern>, Arc<TlsRule>)>,
}

/// Where the connections of a `TLSRoute` go.
#[derive(Clone, PartialEq, Debug)]
pub struct TlsRule {
    /// The `TLSRoute`.
    pub route: ObjectName,
    /// Services by weight. Without one, and for a share that is broken, connections are closed.
    pub targets: Vec<WeightedTarget>,
}

/// A target and its share.
#[derive(Clone, PartialEq, Debug)]
pub struct WeightedTarget {
    /// Share among the rule's targets; zero gets nothing.
    pub weight: u32,
    /// Where to.
    pub target: Target,
    /// Filters of this backend alone.
    pub filters: Vec<Filter>,
}

/// Where a request goes. Pools and Services are named, not held: a table stays as it is when an
/// endpoint comes or goes, however many rules lead there.
#[derive(Clone, PartialEq, Debug)]
pub enum Target {
    /// An inference pool, one of [`Snapshot::pools`](crate::Snapshot::pools).
    Pool(ObjectName),
    /// A Service's endpoints, one of [`Snapshot::services`](crate::Snapshot::services), taken in
    /// turn.
    Service(ServicePort),
    /// A reference that does not hold. It keeps its share and answers with its status.
    Broken(Arc<Broken>),
}

/// A port of a Service, by name, for one use of it: what is known of it may differ by use.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServicePort {
    /// The Service.
    pub name: ObjectName,
    /// `spec.ports[].port`.
    pub port: u16,
    /// What is sent there.
    pub carries: Carries,
    /// The Gateway whose client certificate is shown there, where it has one and the endpoints are
    /// reached by TLS: another Gateway must not show it.
    pub gateway: Option<ObjectName>,
}

/// What kind of route leads to a Service, which decides how its endpoints are spoken to as far as
/// the Service does not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Carries {
    /// `HTTPRoute`: HTTP/1.1, unless `appProtocol` says otherwise.
    #[default]
    Http,
    /// `GRPCRoute`: HTTP/2.
    Grpc,
    /// `TLSRoute` whose connections are ended here: their bytes, in TLS of our own if a policy asks
    /// for it.
    Stream,
    /// `TLSRoute` whose connections are passed on: their bytes as they are.
    Tls,
}

impl ServicePort {
    /// The port as an `HTTPRoute` reaches it.
    #[must_use]
    pub fn new(name: ObjectName, port: u16) -> Self {
        Self {
            name,
            port,
            carries: Carries::Http,
            gateway: None,
        }
    }
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {}", self.name, self.port)
    }
}

/// The resolved port of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceTarget {
    /// Which.
    pub of: ServicePort,
    /// How requests travel.
    pub protocol: AppProtocol,
    /// TLS towards the endpoints, from a `BackendTLSPolicy`; `None` is cleartext, or what the
    /// client sends where its TLS is passed on.
    pub tls: Option<Arc<BackendTls>>,
    /// Ready addresses, ordered.
    pub endpoints: Vec<SocketAddr>,
}

/// How endpoints of a Service prove who they are.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct BackendTls {
    /// The server name that is sent, and that the certificate must be for unless
    /// [`names`](Self::names) says otherwise.
    pub hostname: Arc<str>,
    /// Who may have signed.
    pub trust: Trust,
    /// Names one of which the certificate must carry; empty for the hostname.
    pub names: Vec<SubjectName>,
    /// What this side shows when asked: the Gateway's `spec.tls.backend.clientCertificateRef`.
    pub client: Option<Arc<Certificate>>,
}

/// Roots of trust.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Trust {
    /// Those of the machine.
    System,
    /// Those of a bundle, as PEM.
    Bundle(Arc<[u8]>),
}

/// A subject alternative name.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum SubjectName {
    /// A DNS name, lower case.
    Hostname(Arc<str>),
    /// A URI, such as a SPIFFE id.
    Uri(Arc<str>),
}

/// A target that cannot serve.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broken {
    /// Answered to its share of requests.
    pub status: u16,
    /// Condition reason, such as `BackendNotFound`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// A change to a request or response, or an answer in place.
#[derive(Clone, PartialEq, Debug)]
pub enum Filter {
    /// `RequestHeaderModifier`.
    RequestHeaders(HeaderEdits),
    /// `ResponseHeaderModifier`.
    ResponseHeaders(HeaderEdits),
    /// `RequestRedirect`.
    Redirect(Redirect),
    /// `URLRewrite`.
    Rewrite(UrlRewrite),
    /// `RequestMirror`.
    Mirror(Mirror),
    /// `CORS`.
    Cors(Cors),
}

/// Header edits; names in lower case.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HeaderEdits {
    /// Replace.
    pub set: Vec<(Arc<str>, Arc<str>)>,
    /// Append.
    pub add: Vec<(Arc<str>, Arc<str>)>,
    /// Drop.
    pub remove: Vec<Arc<str>>,
}

/// `HTTPRequestRedirectFilter`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Redirect {
    /// New scheme.
    pub scheme: Option<Arc<str>>,
    /// New host.
    pub hostname: Option<Arc<str>>,
    /// New path.
    pub path: Option<PathEdit>,
    /// New port.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// `HTTPURLRewriteFilter`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UrlRewrite {
    /// New Host header.
    pub hostname: Option<Arc<str>>,
    /// New path.
    pub path: Option<PathEdit>,
}

/// `HTTPPathModifier`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PathEdit {
    /// Replace it whole.
    Full(Arc<str>),
    /// Replace the prefix that the rule's match named.
    Prefix(Arc<str>),
}

/// `HTTPRequestMirrorFilter`: a copy whose answer is dropped.
#[derive(Clone, PartialEq, Debug)]
pub struct Mirror {
    /// Where the copies go.
    pub target: Target,
    /// Copies per `denominator` requests.
    pub numerator: u32,
    /// See `numerator`; never zero.
    pub denominator: u32,
}

/// `HTTPCORSFilter`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cors {
    /// Allowed origins; `*` alone or as a wildcard label.
    pub allow_origins: Vec<Arc<str>>,
    /// Whether credentials are allowed.
    pub allow_credentials: bool,
    /// Allowed methods; `*` for all.
    pub allow_methods: Vec<Arc<str>>,
    /// Allowed request headers; `*` for all.
    pub allow_headers: Vec<Arc<str>>,
    /// Headers that scripts may read.
    pub expose_headers: Vec<Arc<str>>,
    /// Seconds that a preflight answer may be kept.
    pub max_age_s: u32,
}

/// `HTTPRouteTimeouts`; `None` is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Timeouts {
    /// Of the whole exchange as the client sees it.
    pub request: Option<Duration>,
    /// Of each try at a backend, up to the end of its answer.
    pub backend: Option<Duration>,
}

/// `HTTPRouteRetry`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Retry {
    /// Statuses worth another try.
    pub codes: Vec<u16>,
    /// Tries after the first.
    pub attempts: u32,
    /// Least wait between tries.
    pub backoff: Duration,
}

/// Host of a listener or route: exact, or `*.` and a suffix.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum HostPattern {
    /// Equal, lower case.
    Exact(String),
    /// `.example.com` of `*.example.com`: one or more labels before it.
    Suffix(String),
}

impl HostPattern {
    /// Reads `example.com` or `*.example.com`.
    #[must_use]
    pub fn parse(host: &str) -> Self {
        match host.strip_prefix('*') {
            Some(suffix) => Self::Suffix(suffix.to_ascii_lowercase()),
            None => Self::Exact(host.to_ascii_lowercase()),
        }
    }

    /// Whether `host` (lower case, no port) is covered.
    #[must_use]
    pub fn covers(&self, host: &str) -> bool {
        match self {
            Self::Exact(own) => own == host,
            Self::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
        }
    }
}
