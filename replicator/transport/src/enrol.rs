//! How a machine joins a site: one question and one answer over a connection whose server the token
//! pins. The secret leaves the machine only once the server has proven to be the token's.

use crate::agent_identity::AgentIdentity;
use crate::certificate;
use crate::connection::{CONNECT_TIMEOUT, dial, read_message, read_message_within, write_message};
use crate::error::{Result, TransportError};
use crate::site::Site;
use crate::tls;
use crate::token::Token;
use redoubt_log::{MachineId, Name};
use redoubt_protocol::PROTOCOL_VERSION;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Largest request: a certificate request, a host name and a few numbers come to one kilobyte.
const REQUEST_LIMIT_BYTES: usize = 16 << 10;

/// How long the target waits for the machine to take the answer: some round trips of a slow line.
pub(crate) const ANSWER_PATIENCE: Duration = Duration::from_secs(3);

/// How long the machine waits until its goodbye has gone out.
const LAST_WORD_PATIENCE: Duration = Duration::from_millis(500);

/// What the machine asks.
#[derive(Serialize, Deserialize)]
pub(crate) struct EnrolRequest {
    pub(crate) protocol_version: u32,
    pub(crate) token_id: [u8; 16],
    pub(crate) secret: [u8; 16],
    pub(crate) certificate_request: String,
    pub(crate) host_name: String,
}

/// What a machine that is taken in gets.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct EnrolAnswer {
    pub(crate) machine: MachineId,
    pub(crate) name: Name,
    pub(crate) certificate: String,
    pub(crate) authority: String,
    pub(crate) frame_key: [u8; 32],
}

/// What a machine that is not taken in gets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct EnrolRefusal {
    pub(crate) code: EnrolRefusalCode,
    pub(crate) text: String,
}

/// Why a machine is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnrolRefusalCode {
    /// The target never gave such a token out.
    Unknown,
    /// The token exists, its secret is another.
    WrongSecret,
    /// Its time is over.
    Expired,
    /// Another machine has used it.
    Used,
    /// The request cannot be understood.
    Malformed,
    /// The target could not store the machine; the token is still good for this one.
    Failed,
    /// Another machine of the site has the name; the token is still good.
    NameTaken,
}

type Reply = std::result::Result<EnrolAnswer, EnrolRefusal>;

/// Joins the token's site and stores the identity in `directory`. May be repeated with the same
/// token, also after a crash or a lost answer. [`TransportError::Unreachable`] and
/// [`TransportError::Lost`] are worth a retry.
pub async fn enrol(directory: &Path, token: &Token, host_name: &str) -> Result<AgentIdentity> {
    let key = AgentIdentity::pending_key(directory)?;
    let request = EnrolRequest {
        protocol_version: PROTOCOL_VERSION,
        token_id: token.id,
        secret: token.secret,
        certificate_request: certificate::request(&key)?,
        host_name: host_name.to_owned(),
    };
    let config = tls::enrolling_client(token.fingerprint)?;
    let (endpoint, connection) = dial(&token.address, config).await?;
    let lost = |error| TransportError::of_connection(&error, Some(&token.address));
    let asked = async {
        let (mut out, mut back) = connection.open_bi().await.map_err(lost)?;
        write_message(&mut out, &request).await?;
        read_message::<Reply>(&mut back).await
    };
    let reply = tokio::time::timeout(CONNECT_TIMEOUT, asked)
        .await
        .unwrap_or_else(|_| Err(TransportError::Lost("no answer".to_owned())))?;
    connection.close(0u32.into(), b"done");
    // Else the target would wait for more of us: who was refused ends now. Heard or not, all is
    // said.
    let _ = tokio::time::timeout(LAST_WORD_PATIENCE, endpoint.wait_idle()).await;
    let answer = reply.map_err(|refusal| TransportError::EnrolRefused {
        address: token.address.clone(),
        code: refusal.code,
        text: refusal.text,
    })?;
    AgentIdentity::store(directory, &key, &token.address, &answer)?;
    AgentIdentity::load(directory)?.ok_or_else(|| TransportError::Damaged {
        path: directory.to_owned(),
        what: "the identity is gone right after it was stored".to_owned(),
    })
}

/// Answers one machine at the target; who joined, or `None` where it was refused. Whether the
/// machine has heard the answer does not matter: it may ask again.
pub(crate) async fn answer(
    connection: &quinn::Connection,
    site: Arc<Site>,
) -> Result<Option<(MachineId, Name)>> {
    let lost = |error| TransportError::of_connection(&error, None);
    let (mut out, mut back) = connection.accept_bi().await.map_err(lost)?;
    let request: EnrolRequest = read_message_within(&mut back, REQUEST_LIMIT_BYTES).await?;
    let stored = tokio::task::spawn_blocking(move || site.enrol(&request)).await;
    let reply: Reply = match stored {
        Ok(Ok(reply)) => reply,
        Ok(Err(error)) => {
            tracing::error!(%error, "a machine could not be enrolled");
            Err(failed())
        }
        Err(_) => Err(failed()),
    };
    write_message(&mut out, &reply).await?;
    out.finish().map_err(|error| TransportError::Lost(error.to_string()))?;
    // The machine closes once it has read the answer; one that does not is not waited for long.
    let _ = tokio::time::timeout(ANSWER_PATIENCE, connection.closed()).await;
    Ok(reply.ok().map(|answer| (answer.machine, answer.name)))
}

fn failed() -> EnrolRefusal {
    let text =
        "the target could not store the machine (see its log); try again with the same token";
    EnrolRefusal { code: EnrolRefusalCode::Failed, text: text.to_owned() }
}
