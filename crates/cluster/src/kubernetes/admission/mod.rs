//! Webhooks that the API server asks before it takes an object: HTTPS with a bound on everything
//! ([`serve`]), the words of the protocol ([`Request`], [`Answer`]), and the certificate, which the
//! processes of one Deployment make and rotate among themselves ([`Keeper`]) or find in a folder
//! ([`folder`]).
//!
//! What is answered is decided by a [`Judge`], which knows nothing of this.

mod certificate;
mod keeper;
mod review;
mod server;

pub use certificate::{Pair, ServerTls, folder};
pub use keeper::Keeper;
pub use review::{Answer, Cause, Operation, Request, Why};
pub use server::{BODY_BYTES_MAX, Judge, Reviews, serve};
