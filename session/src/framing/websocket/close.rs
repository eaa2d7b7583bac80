//! The closing handshake: who has sent a close frame, and what is still allowed.

use std::borrow::Cow;

use super::{Event, FrameError};

/// How far the closing handshake has come, for the session to keep beside its decoder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CloseState {
    /// Neither side has sent a close frame.
    #[default]
    Open,
    /// We have sent ours and wait for the peer's. Nothing more may be sent; what the peer sends meanwhile is still read.
    Sent,
    /// Both have been exchanged (or the peer broke the rules and is owed no wait): the server closes the socket.
    Finished,
}

/// The close frame owed to the peer that has just sent its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseReply {
    /// The peer's own code; `None` where it sent none. Goes into [`close_frame`](super::close_frame) as it is.
    pub code: Option<u16>,
}

impl CloseState {
    /// We want to close. True if a close frame is to be written now, false if the handshake has begun already.
    #[must_use]
    pub fn send(&mut self) -> bool {
        let first = *self == Self::Open;
        if first {
            *self = Self::Sent;
        }
        first
    }

    /// The peer's close frame has come. `Some` is the reply to write before the socket is closed; `None` means that ours
    /// is on its way already.
    #[must_use]
    pub fn receive(&mut self, code: Option<u16>) -> Option<CloseReply> {
        let reply = (*self == Self::Open).then_some(CloseReply { code });
        *self = Self::Finished;
        reply
    }

    /// The peer broke the framing. True if a close frame with the error's code is to be written before the socket is
    /// closed; its answer is not waited for, since nothing it sends can be understood.
    #[must_use]
    pub fn fail(&mut self) -> bool {
        let first = *self == Self::Open;
        *self = Self::Finished;
        first
    }

    /// Whether data, pings and pongs may still be sent.
    pub fn may_send(self) -> bool {
        self == Self::Open
    }

    /// Whether the socket may be closed once what is queued has been written.
    pub fn is_finished(self) -> bool {
        self == Self::Finished
    }
}

/// Whether `code` may stand in a close frame: 1000-1003, 1007-1014, 3000-4999.
pub fn close_code_is_valid(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Judges what has come of a close frame's payload, which may not be all of it yet. A payload of one byte has been refused
/// by the header.
pub(super) fn check_close(payload_so_far: &[u8]) -> Result<(), FrameError> {
    let Some((code, reason)) = payload_so_far.split_first_chunk::<2>() else { return Ok(()) };
    if !close_code_is_valid(u16::from_be_bytes(*code)) {
        return Err(FrameError::CloseCode);
    }
    match std::str::from_utf8(reason) {
        Err(error) if error.error_len().is_some() => Err(FrameError::InvalidUtf8),
        _ => Ok(()),
    }
}

/// The event of a whole close frame.
pub(super) fn close_event(payload: Cow<'_, [u8]>) -> Result<Event<'_>, FrameError> {
    check_close(&payload)?;
    let Some((code, _)) = payload.split_first_chunk::<2>() else {
        return Ok(Event::Close { code: None, reason: Cow::Borrowed("") });
    };
    let code = Some(u16::from_be_bytes(*code));
    let reason = match payload {
        Cow::Borrowed(bytes) => {
            std::str::from_utf8(&bytes[2..]).map(Cow::Borrowed).map_err(|_| FrameError::InvalidUtf8)?
        }
        Cow::Owned(bytes) => {
            std::str::from_utf8(&bytes[2..]).map(|s| Cow::Owned(s.to_owned())).map_err(|_| FrameError::InvalidUtf8)?
        }
    };
    Ok(Event::Close { code, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peers_close_is_answered_with_its_own_code_once() {
        let mut state = CloseState::Open;
        assert!(state.may_send());
        assert_eq!(state.receive(Some(4001)), Some(CloseReply { code: Some(4001) }));
        assert!(state.is_finished() && !state.may_send());
        assert_eq!(state.receive(Some(4001)), None);
        assert!(!state.send());
    }

    #[test]
    fn our_close_waits_for_the_peers() {
        let mut state = CloseState::Open;
        assert!(state.send());
        assert!(!state.send(), "only one close frame is ever sent");
        assert!(!state.may_send() && !state.is_finished());
        assert_eq!(state.receive(None), None);
        assert!(state.is_finished());
    }

    #[test]
    fn after_a_violation_nothing_is_waited_for() {
        let mut state = CloseState::Open;
        assert!(state.fail());
        assert!(state.is_finished());
        let mut state = CloseState::Sent;
        assert!(!state.fail());
        assert!(state.is_finished());
    }

    #[test]
    fn the_valid_codes_are_those_of_the_registry_and_the_private_ranges() {
        let valid: Vec<u16> = (0..=u16::MAX).filter(|code| close_code_is_valid(*code)).collect();
        let expected: Vec<u16> = (1000..=1003).chain(1007..=1014).chain(3000..=4999).collect();
        assert_eq!(valid, expected);
    }
}
