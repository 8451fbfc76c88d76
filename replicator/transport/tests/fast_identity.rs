//! How machines join a site and come back to it, end to end.

// Helpers outside of test functions may panic like these: a site that cannot be set up is a
// failure.
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic as the test itself may")]

mod support;

use redoubt_protocol::message::RequestId;
use redoubt_protocol::{AgentMessage, TargetMessage};
use redoubt_transport::{
    AgentIdentity, EnrolRefusalCode, InStream, Parts, Site, Token, TransportError, enrol,
};
use std::time::Duration;
use support::{HOUR, join, listen, meet};

fn code(error: &TransportError) -> Option<EnrolRefusalCode> {
    match error {
        TransportError::EnrolRefused { code, .. } => Some(*code),
        _ => None,
    }
}

#[tokio::test]
async fn joins_and_comes_back_after_restarts() {
    let (data, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (site, listener, address) = listen(data.path());
    assert!(AgentIdentity::load(state.path()).unwrap().is_none());
    let joined = join(&site, &listener, address, state.path()).await;
    assert_eq!(site.machine(joined.machine).unwrap().unwrap().name, joined.name);
    for _ in 0..2 {
        let loaded = AgentIdentity::load(state.path()).unwrap().unwrap();
        assert_eq!(loaded.machine, joined.machine);
        assert_eq!(loaded.address, address.to_string());
        let (agent, machine, target) = meet(&listener, &loaded, address).await.unwrap();
        assert_eq!(machine, joined.machine);
        let mut agent: Parts<AgentMessage, TargetMessage> = agent.into_parts();
        let mut target: Parts<TargetMessage, AgentMessage> = target.into_parts();
        let said = AgentMessage::Goodbye { reason: "x".repeat(100_000) };
        agent.sender.send(&said).await.unwrap();
        assert_eq!(target.receiver.receive().await.unwrap(), said);
        target.sender.send(&TargetMessage::Room).await.unwrap();
        assert_eq!(agent.receiver.receive().await.unwrap(), TargetMessage::Room);
        target.handle.close("enough");
        let ended = agent.handle.closed().await;
        assert!(ended.to_string().contains("enough"), "{ended}");
    }
    // A target that starts again has the same identity.
    drop(listener);
    let (_, listener, address) = listen(data.path());
    assert_eq!(meet(&listener, &joined, address).await.unwrap().1, joined.machine);
}

#[tokio::test]
async fn a_last_word_arrives_before_the_close() {
    let (data, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (site, listener, address) = listen(data.path());
    let joined = join(&site, &listener, address, state.path()).await;
    for _ in 0..20 {
        let (agent, _, target) = meet(&listener, &joined, address).await.unwrap();
        let mut agent: Parts<AgentMessage, TargetMessage> = agent.into_parts();
        let mut target: Parts<TargetMessage, AgentMessage> = target.into_parts();
        let said = TargetMessage::Full { reason: "y".repeat(50_000) };
        target.sender.send(&said).await.unwrap();
        target.sender.finish().await.unwrap();
        target.handle.close("enough");
        agent.handle.closed().await;
        assert_eq!(agent.receiver.receive().await.unwrap(), said);
        assert!(agent.receiver.receive().await.is_err());
    }
}

#[tokio::test]
async fn a_token_is_refused_with_the_right_reason() {
    let (data, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (site, listener, address) = listen(data.path());
    let serve = async {
        while let Some(arriving) = listener.accept().await {
            arriving.finish().await.unwrap();
        }
    };
    let ask = async {
        let place = address.to_string();
        // Beside the running target, as the command does.
        let beside = Site::open(data.path()).unwrap();
        let token = beside.invite(&place, Some("db".parse().unwrap()), HOUR).unwrap();
        let first = enrol(&state.path().join("one"), &token, "x").await.unwrap();
        assert_eq!(first.name.as_str(), "db");
        let again = enrol(&state.path().join("two"), &token, "x").await.err().unwrap();
        assert_eq!(code(&again), Some(EnrolRefusalCode::Used), "{again}");
        let expired = beside.invite(&place, None, Duration::ZERO).unwrap();
        let expired = enrol(&state.path().join("two"), &expired, "x").await.err().unwrap();
        assert_eq!(code(&expired), Some(EnrolRefusalCode::Expired), "{expired}");
        let other = beside.invite(&place, None, HOUR).unwrap();
        let taken = enrol(&state.path().join("two"), &other, "db").await.err().unwrap();
        assert_eq!(code(&taken), Some(EnrolRefusalCode::NameTaken), "{taken}");
        assert!(AgentIdentity::load(&state.path().join("two")).unwrap().is_none());
        let mut mistyped = token.to_string();
        mistyped.pop();
        let mistyped = mistyped.parse::<Token>().err().unwrap();
        assert!(mistyped.to_string().contains("mistyped"), "{mistyped}");
        assert_eq!(site.machines().unwrap().len(), 1);
        let second = enrol(&state.path().join("two"), &other, "db-2").await.unwrap();
        assert_eq!(second.name.as_str(), "db-2");
    };
    tokio::select! { () = serve => panic!("the listener ended"), () = ask => {} }
}

#[tokio::test]
async fn a_token_of_another_site_never_shows_its_secret() {
    let (data, other, state) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, listener, address) = listen(data.path());
    let other = Site::open_or_create(other.path()).unwrap();
    let token = other.invite(&address.to_string(), None, HOUR).unwrap();
    let server = async { listener.accept().await.unwrap().finish().await.err().unwrap() };
    let (client, _) = tokio::join!(enrol(state.path(), &token, "x"), server);
    let client = client.err().unwrap();
    assert!(matches!(client, TransportError::ForeignSite { .. }), "{client}");
    assert!(AgentIdentity::load(state.path()).unwrap().is_none());
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let state = tempfile::tempdir().unwrap();
    let site = Site::open_or_create(&state.path().join("site")).unwrap();
    let token = site.invite("host.invalid:1", None, HOUR).unwrap();
    let error = enrol(state.path(), &token, "x").await.err().unwrap();
    assert!(matches!(error, TransportError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_point_is_copied_out_and_an_abort_is_no_end() {
    let (data, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (site, listener, address) = listen(data.path());
    let joined = join(&site, &listener, address, state.path()).await;
    let (agent, _, target) = meet(&listener, &joined, address).await.unwrap();
    let agent: Parts<AgentMessage, TargetMessage> = agent.into_parts();
    let target: Parts<TargetMessage, AgentMessage> = target.into_parts();
    let content: Vec<u8> = (0..500_000u32).map(|at| at.to_le_bytes()[1]).collect();
    let send = async {
        let mut point = target.handle.open_point(RequestId(5)).await.unwrap();
        point.send(1 << 40, content.clone().into()).await.unwrap();
        point.finish().await.unwrap();
        let mut point = target.handle.open_point(RequestId(6)).await.unwrap();
        point.send(0, content.clone().into()).await.unwrap();
        point.abort();
    };
    let receive = async {
        let mut buffer = Vec::new();
        let InStream::Point(mut point) = agent.handle.accept_stream().await.unwrap() else {
            panic!("a stream of frames came");
        };
        assert_eq!(point.request(), RequestId(5));
        assert_eq!(point.next(&mut buffer).await.unwrap(), Some(1 << 40));
        assert_eq!(buffer, content);
        assert_eq!(point.next(&mut buffer).await.unwrap(), None);
        // The second either breaks at once or after some of it, but never ends well.
        let Ok(InStream::Point(mut point)) = agent.handle.accept_stream().await else { return };
        while let Ok(chunk) = point.next(&mut buffer).await {
            assert!(chunk.is_some(), "an aborted stream came to an end");
        }
    };
    tokio::join!(send, receive);
}
