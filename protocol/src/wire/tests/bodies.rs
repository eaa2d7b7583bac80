//! What holds of all bytes that are taken for frames or records: nothing panics, and what decodes survives a round trip.
//! The bounded tests beside this file and the targets of the folder `fuzz/` call the same functions.

use bytes::Bytes;
use roost_protocol::frames::{ClientFrame, Form, ServerFrame};
use roost_protocol::records::{DeliverRecord, IngressRecord};

/// In every form; what one form says, the others say alike.
pub fn client_frames(input: &[u8]) {
    for form in Form::ALL {
        if let Ok(frame) = ClientFrame::decode(form, input) {
            for other in Form::ALL {
                assert_eq!(ClientFrame::decode(other, &frame.encode(other)).as_ref(), Ok(&frame));
            }
        }
    }
}

/// In every form.
pub fn server_frames(input: &[u8]) {
    for form in Form::ALL {
        if let Ok(Some(frame)) = ServerFrame::decode(form, Bytes::copy_from_slice(input)) {
            assert_eq!(ServerFrame::decode(form, Bytes::from(frame.encode(form))), Ok(Some(frame)));
        }
    }
}

/// Of both topics.
pub fn log_records(input: &[u8]) {
    if let Ok(record) = IngressRecord::decode(input) {
        assert_eq!(IngressRecord::decode(&record.encode()), Ok(record));
    }
    if let Ok(record) = DeliverRecord::decode(Bytes::copy_from_slice(input)) {
        assert_eq!(DeliverRecord::decode(record.encode()), Ok(record));
    }
}
