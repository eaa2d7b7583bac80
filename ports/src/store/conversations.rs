//! Conversations and their members, as the Store lists them.

use roost_protocol::frames::{ConversationKind, Head};
use roost_protocol::{Seq, UserId};

/// A member, with the range of seqs that is for them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Who.
    pub user_id: UserId,
    /// The first seq for them.
    pub from_seq: Seq,
    /// The last seq for them; absent while they are a member.
    pub to_seq: Option<Seq>,
}

impl Member {
    /// Whether a message of this seq is for them.
    pub fn sees(&self, seq: Seq) -> bool {
        self.from_seq <= seq && self.to_seq.is_none_or(|to| seq <= to)
    }
}

/// A page of members.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MembersPage {
    /// The seq of the newest membership event when this was read: the list is the one of this version. A reader that
    /// sees it change between two pages starts again.
    pub version: Seq,
    /// In order of user id.
    pub members: Vec<Member>,
    /// There are more after the last one.
    pub more: bool,
}

/// A conversation in a user's list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConversationEntry {
    /// Where it stands for this user.
    pub head: Head,
    /// Direct or group.
    pub kind: ConversationKind,
    /// Its title.
    pub title: Option<String>,
    /// The other user of a direct conversation.
    pub peer: Option<UserId>,
}

/// A page of a user's conversations.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConversationList {
    /// In order of id.
    pub conversations: Vec<ConversationEntry>,
    /// There are more after the last one.
    pub more: bool,
}
