//! Asks the admin server of a running gateway. One question per connection; answers are JSON.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::Failure;

/// How long an answer may take. It is made from memory; a longer wait means the wrong port.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of an answer; the decisions of a thousand requests take about 5 MiB.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The JSON at `path` of the admin server at `admin`.
pub(crate) fn get(admin: SocketAddr, path: &str) -> Result<Value, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| Failure::world(format!("no runtime: {error}")))?;
    let asked = runtime.block_on(async {
        match tokio::time::timeout(TIMEOUT, ask(admin, path)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
        }
    });
    asked.map_err(|why| {
        Failure::world(format!(
            "no gateway answers at {admin}: {why}\n  is `forebay gateway` running, and with this --admin \
             address? (FOREBAY_ADMIN sets it for all commands)"
        ))
    })
}

async fn ask(admin: SocketAddr, path: &str) -> Result<Value, String> {
    let stream = TcpStream::connect(admin).await.map_err(|e| e.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let request = Request::get(path)
        .header(header::HOST, admin.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    // The connection ends when `sender` is dropped, at the end of this function.
    let exchange = async move {
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| e.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        let bytes = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
        Ok::<_, String>((status, bytes))
    };
    let (answer, _closed) = tokio::join!(exchange, connection);
    let (status, bytes) = answer?;
    if status != StatusCode::OK {
        let text = String::from_utf8_lossy(&bytes);
        return Err(format!("it answered {status}: {}", text.trim()));
    }
    serde_json::from_slice(&bytes).map_err(|_| "what answers there is no admin server".to_owned())
}
