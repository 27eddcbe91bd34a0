//! The endpoint picker for other proxies: the server side of Envoy's external processing.
//!
//! [`Epp::start`] opens the ports beside a running [`crate::Gateway`], whose workers serve the calls: a
//! connection goes to the worker with the fewest. What a call means is in [`protocol`], which is pure;
//! the decision is that of the data plane ([`crate::phases`]). See `docs/epp.md`.
//!
//! ```text
//! accept ─ connection ─ call (stream) ─ protocol ─ phases ─ answer
//!     └─ tls    └─ health
//! ```

mod accept;
mod answer;
mod connection;
mod head;
mod health;
mod pools;
pub mod protocol;
mod stream;
mod test_selection;
mod tls;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use forebay_model::ObjectName;

pub(crate) use self::accept::{Seat, Seats, take_seat};
use crate::admin::Readiness;
use crate::shared::Shared;

/// Endpoints of a list that are noted as passed over, or picked by name; there are never that many
/// tries.
const PASSED_OVER_MAX: usize = 16;

/// How calls are taken and answered.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Address of external processing (and health).
    pub listen: SocketAddr,
    /// Address of health alone, without TLS; `None` for none.
    pub health: Option<SocketAddr>,
    /// How connections of `listen` are secured.
    pub security: Security,
    /// The pool that every call is for; `None` lets calls name theirs.
    pub pool: Option<ObjectName>,
    /// Where a pool is that is named without its namespace.
    pub namespace: String,
    /// Whether to ask for bodies of responses, whose usage is then known, and not only where the
    /// name of a model has to be restored in them. It costs proxy and picker an exchange per piece.
    pub response_bodies: bool,
    /// Whether the conformance suite's field says what is picked.
    pub test_selection: bool,
}

/// How connections are secured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Security {
    /// Not at all.
    Plaintext,
    /// With a certificate that is made at the start and that nobody has signed.
    SelfSigned,
    /// With the certificate and the key in this folder (`tls.crt`, `tls.key`), read again when they
    /// change if `reload` says so.
    Files {
        /// The folder.
        folder: PathBuf,
        /// Whether changes are followed.
        reload: bool,
    },
}

/// The open ports of a picker. They close when the gateway drains.
#[derive(Debug)]
pub struct Epp {
    /// Where external processing is served.
    pub address: SocketAddr,
    /// Where health alone is.
    pub health: Option<SocketAddr>,
}

impl Epp {
    /// Opens the ports. `readiness` is what health services tell.
    ///
    /// # Errors
    /// If a port cannot be opened, or the certificate does not hold.
    pub fn start(
        shared: &Arc<Shared>,
        settings: &Settings,
        readiness: Arc<Readiness>,
    ) -> io::Result<Self> {
        accept::start(shared, settings, readiness)
    }
}
