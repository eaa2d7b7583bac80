//! What is written and read by hand is what prost writes and reads.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;

use super::strategies::*;
use crate::frames::*;
use crate::records::*;
use crate::wire::client_binary::{RawBody, RawClient};
use crate::wire::generated as pb;
use crate::wire::record::{RawAction, RawIngress, RawOrigin};

fn raw_of(frame: &pb::ClientFrame) -> RawClient<'_> {
    use pb::client_frame::Body;
    use pb::history::Range;
    let body = frame.body.as_ref().map(|body| match body {
        Body::Connect(connect) => RawBody::Connect {
            token: connect.token.as_deref(),
            device_id: connect.device_id.as_deref(),
            client: &connect.client,
        },
        Body::Send(send) => RawBody::Send {
            client_msg_id: &send.client_msg_id,
            conversation_id: &send.conversation_id,
            content_type: &send.content_type,
            body: &send.body,
        },
        Body::Sync(sync) => RawBody::Sync { since: sync.since.as_deref() },
        Body::History(history) => RawBody::History {
            conversation_id: &history.conversation_id,
            range: history.range.map(|range| match range {
                Range::After(seq) => HistoryRange::After(seq),
                Range::Before(seq) => HistoryRange::Before(seq),
            }),
            limit: history.limit,
        },
        Body::Refresh(refresh) => RawBody::Refresh { token: &refresh.token },
        Body::Ping(_) => RawBody::Ping,
        Body::Pong(_) => RawBody::Pong,
    });
    RawClient { id: frame.id, body }
}

fn raw_of_record(record: &pb::IngressRecord) -> RawIngress<'_> {
    use pb::ingress_record::Action;
    RawIngress {
        actor: &record.actor,
        device: &record.device,
        client_msg_id: &record.client_msg_id,
        time: record.time,
        origin: record.origin.as_ref().map(|origin| RawOrigin {
            address: &origin.address,
            incarnation: origin.incarnation,
            session: origin.session.as_deref(),
            request: origin.request,
        }),
        if_last_seq: record.if_last_seq,
        action: record.action.as_ref().map(|action| match action {
            Action::Send(send) => RawAction::Send {
                conversation_id: &send.conversation_id,
                content_type: &send.content_type,
                body: &send.body,
            },
            Action::Create(create) => RawAction::Create {
                conversation_id: &create.conversation_id,
                kind: create.kind,
                title: create.title.as_deref(),
                members: create.members.iter().map(|member| member.as_ref()).collect(),
            },
        }),
    }
}

fn clients_agree(bytes: &[u8]) -> Result<(), TestCaseError> {
    let theirs = pb::ClientFrame::decode(bytes);
    let mut ours = RawClient::default();
    match (ours.parse(bytes), &theirs) {
        (Ok(()), Ok(theirs)) => prop_assert_eq!(ours, raw_of(theirs)),
        (Err(_), Err(_)) => {}
        (ours, theirs) => prop_assert!(false, "ours {ours:?}, prost {theirs:?}"),
    }
    Ok(())
}

fn records_agree(bytes: &[u8]) -> Result<(), TestCaseError> {
    match (RawIngress::parse(bytes), &pb::IngressRecord::decode(bytes)) {
        (Ok(ours), Ok(theirs)) => prop_assert_eq!(ours, raw_of_record(theirs)),
        (Err(_), Err(_)) => {}
        (ours, theirs) => prop_assert!(false, "ours {ours:?}, prost {theirs:?}"),
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_protobuf_reads_alike(bytes in protobuf_like()) {
        clients_agree(&bytes)?;
        records_agree(&bytes)?;
    }

    #[test]
    fn any_bytes_read_alike(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        clients_agree(&bytes)?;
        records_agree(&bytes)?;
    }

    #[test]
    fn concatenated_client_frames_merge_alike(one in client_frame(), other in client_frame()) {
        let bytes = [one.encode(Form::Binary), other.encode(Form::Binary)].concat();
        clients_agree(&bytes)?;
        // A message inside a field merges too.
        let inner = [length_delimited(3, &length_delimited(4, b"one")), length_delimited(3, &bytes)].concat();
        clients_agree(&inner)?;
    }

    #[test]
    fn client_frames_are_written_as_prost_writes_them(frame in client_frame()) {
        let bytes = frame.encode(Form::Binary);
        prop_assert_eq!(pb::ClientFrame::decode(&*bytes).expect("prost reads it").encode_to_vec(), bytes);
    }

    #[test]
    fn server_frames_are_written_as_prost_writes_them(frame in server_frame()) {
        let bytes = frame.encode(Form::Binary);
        prop_assert_eq!(bytes.len(), frame.encoded_len_hint(Form::Binary));
        prop_assert_eq!(pb::ServerFrame::decode(&*bytes).expect("prost reads it").encode_to_vec(), bytes);
    }

    #[test]
    fn messages_are_written_as_prost_writes_them(message in message()) {
        let mut direct = Vec::new();
        message.encode_frame_into(Form::Binary, &mut direct);
        prop_assert_eq!(direct.len(), message.frame_len_hint(Form::Binary));
        let frame = ServerFrame::unsolicited(ServerBody::Message(message));
        prop_assert_eq!(&direct, &frame.encode(Form::Binary));
        prop_assert_eq!(pb::ServerFrame::decode(&*direct).expect("prost reads it").encode_to_vec(), direct);
    }

    #[test]
    fn records_are_written_as_prost_writes_them(ingress in ingress(), deliver in deliver()) {
        let bytes = ingress.encode();
        prop_assert_eq!(Bytes::from(pb::IngressRecord::decode(&*bytes).expect("prost reads it").encode_to_vec()), &bytes);
        prop_assert_eq!(IngressRecord::decode(&bytes), Ok(ingress));
        let bytes = deliver.encode();
        prop_assert_eq!(Bytes::from(pb::DeliverRecord::decode(&*bytes).expect("prost reads it").encode_to_vec()), &bytes);
        prop_assert_eq!(DeliverRecord::decode(bytes), Ok(deliver));
    }
}
