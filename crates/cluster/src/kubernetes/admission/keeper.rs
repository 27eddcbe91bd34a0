//! The certificate that the processes of one Deployment share: in a Secret, made and rotated by the one
//! that is elected, and its authority in the webhook configurations.
//!
//! A new authority is written beside the last one into the configurations first, and only then the new
//! certificate into the Secret: at no time does a server show what API servers do not know. A process that
//! was killed in between leaves an authority that nobody uses; the next round writes over it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::certificate::{Issued, Pair, RENEW_AFTER, ServerTls, base64, from_base64, issue};
use crate::kubernetes::server::{Failure, Server, Write, json as parse};

/// How often it is looked whether all is as it should be: a `helm upgrade` may have emptied a bundle.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The same while there is no certificate.
const LOOK_SOON: Duration = Duration::from_millis(500);
/// When the certificate in a Secret was made, seconds since 1970.
const MADE_AT: &str = "forebay.dev/made-at";
const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1";

/// Keeps the certificate.
#[derive(Debug)]
pub struct Keeper {
    server: Server,
    namespace: String,
    secret: String,
    names: Vec<String>,
    /// Validating and mutating, where there are such.
    configuration: String,
}

/// What the Secret holds.
struct Stored {
    object: Value,
    pair: Option<Pair>,
    authorities: Vec<String>,
    made_at_s: u64,
}

impl Keeper {
    /// Keeps it in the Secret `secret` of `namespace`, which has to be there, for a server that is reached
    /// by `names`, and its authority in the webhook configurations called `configuration`.
    #[must_use]
    pub fn new(
        server: Server,
        (namespace, secret): (&str, &str),
        names: Vec<String>,
        configuration: &str,
    ) -> Keeper {
        Keeper {
            server,
            namespace: namespace.to_owned(),
            secret: secret.to_owned(),
            names,
            configuration: configuration.to_owned(),
        }
    }

    /// Keeps it for ever, writing while `leads` says so. What is in force goes to `out`.
    pub async fn run(
        self,
        mut leads: watch::Receiver<bool>,
        out: watch::Sender<Option<ServerTls>>,
    ) {
        let mut shown = None;
        let mut complained = String::new();
        loop {
            let leading = *leads.borrow_and_update();
            match self
                .round(leading, SystemTime::now(), &mut shown, &out)
                .await
            {
                Ok(()) => complained.clear(),
                Err(why) if why == complained => {}
                Err(why) => {
                    tracing::warn!("the webhooks' certificate waits: {why}");
                    complained = why;
                }
            }
            let pause = if shown.is_some() {
                LOOK_EVERY
            } else {
                LOOK_SOON
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // Who elects may be gone: then nobody is elected any more.
                changed = leads.changed() => if changed.is_err() {
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn round(
        &self,
        leading: bool,
        now: SystemTime,
        shown: &mut Option<Pair>,
        out: &watch::Sender<Option<ServerTls>>,
    ) -> Result<(), String> {
        let stored = self.read().await?;
        let fresh = match leading && stored.is_due(now) {
            true => Some(issue(&self.names, now).map_err(|error| error.to_string())?),
            false => None,
        };
        if leading {
            let bundle = stored.bundle(fresh.as_ref());
            if !bundle.is_empty() {
                self.trust(&bundle).await?;
            }
        }
        let pair = match fresh {
            Some(fresh) => Some(self.write(stored, fresh, now).await?),
            None => stored.pair,
        };
        let Some(pair) = pair else {
            return match leading {
                true => Err("the Secret's certificate cannot be read".to_owned()),
                false => Ok(()),
            };
        };
        if shown.as_ref() != Some(&pair) {
            out.send_replace(Some(ServerTls::of(&pair)?));
            tracing::info!("a certificate of the Secret {} is in force", self.secret);
            *shown = Some(pair);
        }
        Ok(())
    }

    fn path(&self) -> String {
        let (namespace, secret) = (&self.namespace, &self.secret);
        format!("/api/v1/namespaces/{namespace}/secrets/{secret}")
    }

    async fn read(&self) -> Result<Stored, String> {
        let told = |failure: Failure| {
            let (namespace, secret) = (&self.namespace, &self.secret);
            match failure.is(StatusCode::NOT_FOUND) {
                true => format!("there is no Secret {namespace}/{secret}: make an empty one"),
                false => format!("the Secret {namespace}/{secret} cannot be read: {failure}"),
            }
        };
        let bytes = self.server.get(&self.path()).await.map_err(told)?;
        Ok(Stored::of(parse(&bytes).map_err(told)?))
    }

    async fn write(&self, stored: Stored, fresh: Issued, now: SystemTime) -> Result<Pair, String> {
        let bundle = stored.bundle(Some(&fresh));
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut object = stored.object;
        object["apiVersion"] = json!("v1");
        object["kind"] = json!("Secret");
        object["data"] = json!({
            "ca.crt": base64(bundle.as_bytes()),
            "tls.crt": base64(fresh.pair.chain_pem.as_bytes()),
            "tls.key": base64(fresh.pair.key_pem.as_bytes()),
        });
        object["metadata"]["annotations"][MADE_AT] = json!(seconds.to_string());
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        // Of the version that was read: another who was elected in between is not written over.
        let written = self
            .server
            .write(Write::Replace, &self.path(), &object)
            .await;
        written
            .map_err(|failure| format!("the Secret {} is not written: {failure}", self.secret))?;
        tracing::info!("a new certificate is in the Secret {}", self.secret);
        Ok(fresh.pair)
    }

    /// Sees to it that both configurations trust `bundle`.
    async fn trust(&self, bundle: &str) -> Result<(), String> {
        let bundle = json!(base64(bundle.as_bytes()));
        for kind in [
            "validatingwebhookconfigurations",
            "mutatingwebhookconfigurations",
        ] {
            let path = format!("{CONFIGURATIONS}/{kind}/{}", self.configuration);
            let told = |failure: Failure| format!("{kind} {}: {failure}", self.configuration);
            let mut object: Value = match self.server.get(&path).await {
                Ok(bytes) => parse(&bytes).map_err(told)?,
                // One that nobody wanted needs no trust.
                Err(failure) if failure.is(StatusCode::NOT_FOUND) => continue,
                Err(failure) => return Err(told(failure)),
            };
            let mut differs = false;
            for hook in object["webhooks"].as_array_mut().into_iter().flatten() {
                let client = &mut hook["clientConfig"];
                differs |= client["caBundle"] != bundle;
                client["caBundle"] = bundle.clone();
            }
            if differs {
                if let Some(metadata) = object["metadata"].as_object_mut() {
                    metadata.remove("managedFields");
                }
                let written = self.server.write(Write::Replace, &path, &object).await;
                written.map_err(told)?;
                tracing::info!("{kind} {} trusts the certificate", self.configuration);
            }
        }
        Ok(())
    }
}

impl Stored {
    fn of(object: Value) -> Stored {
        let text = |key: &str| object["data"][key].as_str().and_then(from_base64);
        let pair = text("tls.crt").zip(text("tls.key"));
        let pair = pair.map(|(chain_pem, key_pem)| Pair { chain_pem, key_pem });
        // What a server cannot show is as good as none.
        let pair = pair.filter(|pair| ServerTls::of(pair).is_ok());
        let made = object["metadata"]["annotations"][MADE_AT].as_str();
        let made_at_s = made.and_then(|made| made.parse().ok()).unwrap_or(0);
        let authorities = split(&text("ca.crt").unwrap_or_default());
        Stored {
            pair,
            authorities,
            made_at_s,
            object,
        }
    }

    fn is_due(&self, now: SystemTime) -> bool {
        let made = UNIX_EPOCH + Duration::from_secs(self.made_at_s);
        // From the future: the clock was wrong then, or is now; either way nobody knows how old it is.
        let age = now.duration_since(made).unwrap_or(RENEW_AFTER);
        self.pair.is_none() || self.authorities.is_empty() || age >= RENEW_AFTER
    }

    /// The authorities to trust: that of the certificate to come, that of the one in force, and if none is
    /// to come the one before, as long as the Secret has it.
    fn bundle(&self, fresh: Option<&Issued>) -> String {
        let fresh = fresh.map(|issued| issued.authority_pem.clone());
        let known = self
            .authorities
            .iter()
            .take(if fresh.is_some() { 1 } else { 2 });
        fresh.into_iter().chain(known.cloned()).collect()
    }
}

/// Certificates of a bundle, one by one.
fn split(pem: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let parts = pem.split_inclusive(END).filter(|part| part.contains(END));
    parts
        .map(|part| part.trim_start().to_owned() + "\n")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(age: Duration, now: SystemTime) -> (Stored, Issued) {
        let issued = issue(&["a.b.svc".to_owned()], now).unwrap();
        let seconds = (now - age).duration_since(UNIX_EPOCH).unwrap().as_secs();
        let object = json!({
            "metadata": { "annotations": { MADE_AT: seconds.to_string() } },
            "data": {
                "ca.crt": base64(issued.authority_pem.as_bytes()),
                "tls.crt": base64(issued.pair.chain_pem.as_bytes()),
                "tls.key": base64(issued.pair.key_pem.as_bytes()),
            },
        });
        (Stored::of(object), issued)
    }

    #[test]
    fn a_certificate_is_renewed_when_it_is_old_broken_or_from_the_future() {
        let now = SystemTime::now();
        assert!(Stored::of(json!({})).is_due(now));
        assert!(!stored(Duration::ZERO, now).0.is_due(now));
        assert!(stored(RENEW_AFTER, now).0.is_due(now));
        let early = now - Duration::from_secs(600);
        assert!(stored(Duration::ZERO, now).0.is_due(early));
        let mut broken = stored(Duration::ZERO, now).0.object;
        broken["data"]["tls.key"] = json!(base64(b"no key"));
        assert!(Stored::of(broken).is_due(now));
    }

    #[test]
    fn the_authority_to_come_is_trusted_beside_the_one_in_force() {
        let now = SystemTime::now();
        let (old, issued) = stored(RENEW_AFTER, now);
        assert_eq!(split(&old.bundle(None)), split(&issued.authority_pem));
        let next = issue(&["a.b.svc".to_owned()], now).unwrap();
        let both = split(&old.bundle(Some(&next)));
        assert_eq!(both.len(), 2);
        assert_eq!(both[0].trim(), next.authority_pem.trim());
        assert_eq!(both[1].trim(), issued.authority_pem.trim());
    }
}
