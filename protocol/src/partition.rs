//! Which partition a conversation's records live in.

use crate::ConversationId;

/// Partitions of the topics `ingress` and `deliver` unless the Store was migrated with another count.
pub const PARTITIONS_DEFAULT: u32 = 48;

/// The partition of a conversation: both halves of the id mixed (the finaliser of SplitMix64), modulo the count.
/// Frozen: another function would send a conversation's records to two partitions.
pub fn of(conversation: ConversationId, partitions: u32) -> u32 {
    assert!(partitions > 0, "a topic has at least one partition");
    let value = conversation.uuid().as_u128();
    let mut mixed = ((value >> 64) as u64) ^ (value as u64).rotate_left(32);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    (mixed % u64::from(partitions)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_function_is_frozen() {
        let id = |text: &str| text.parse::<ConversationId>().expect("an id");
        let seen: Vec<u32> = [
            "00000000-0000-0000-0000-000000000000",
            "018f2f3c-0000-7000-8000-000000000001",
            "018f2f3c-0000-7000-8000-000000000002",
        ]
        .iter()
        .map(|text| of(id(text), 48))
        .collect();
        assert_eq!(seen, [0, 0, 15]);
    }

    #[test]
    fn new_ids_spread_evenly() {
        let mut counts = [0u32; 48];
        for _ in 0..48_000 {
            counts[of(ConversationId::new(), 48) as usize] += 1;
        }
        assert!(counts.iter().all(|&count| (800..1200).contains(&count)), "{counts:?}");
    }
}
