//! The sessions of a shard: slots that never move, grown in chunks, each with a generation.

use roost_protocol::SessionId;

/// Slots are allocated so many at a time: growth copies nothing, and never doubles what is there.
const CHUNK_SLOTS: usize = 1024;
const NONE: u32 = u32::MAX;

/// A slot and which of its inhabitants is meant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    /// The slot.
    pub slot: u32,
    /// Which of the slot's inhabitants; fits in a session id.
    pub generation: u32,
}

/// Values in slots.
pub struct Slab<T> {
    chunks: Vec<Box<[Slot<T>]>>,
    free: u32,
}

struct Slot<T> {
    generation: u32,
    content: Content<T>,
}

enum Content<T> {
    Vacant { next: u32 },
    Occupied(T),
}

impl<T> Slab<T> {
    /// An empty slab that holds nothing on the heap.
    pub fn new() -> Self {
        Self { chunks: Vec::new(), free: NONE }
    }

    /// How many slots there are: every key's slot is below.
    pub fn slots(&self) -> u32 {
        (self.chunks.len() * CHUNK_SLOTS) as u32
    }

    /// Puts a value into a free slot.
    pub fn insert(&mut self, value: T) -> Key {
        if self.free == NONE {
            self.grow();
        }
        let slot = self.free;
        let place = self.slot_mut(slot).expect("a free slot exists");
        let Content::Vacant { next } = place.content else { unreachable!("a free slot is vacant") };
        place.content = Content::Occupied(value);
        let key = Key { slot, generation: place.generation };
        self.free = next;
        key
    }

    /// The value of a key, unless it is gone.
    pub fn get(&self, key: Key) -> Option<&T> {
        let slot = self.chunks.get(key.slot as usize / CHUNK_SLOTS)?.get(key.slot as usize % CHUNK_SLOTS)?;
        match &slot.content {
            Content::Occupied(value) if slot.generation == key.generation => Some(value),
            _ => None,
        }
    }

    /// The value of a key, unless it is gone.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slot_mut(key.slot)?;
        match &mut slot.content {
            Content::Occupied(value) if slot.generation == key.generation => Some(value),
            _ => None,
        }
    }

    /// The key of whoever lives in a slot now.
    pub fn key_at(&self, slot: u32) -> Option<Key> {
        let place = self.chunks.get(slot as usize / CHUNK_SLOTS)?.get(slot as usize % CHUNK_SLOTS)?;
        matches!(place.content, Content::Occupied(_)).then_some(Key { slot, generation: place.generation })
    }

    /// Takes a value out; its key finds nobody from now on.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let free = self.free;
        let slot = self.slot_mut(key.slot)?;
        if slot.generation != key.generation || matches!(slot.content, Content::Vacant { .. }) {
            return None;
        }
        slot.generation = if slot.generation == SessionId::GENERATION_MAX { 0 } else { slot.generation + 1 };
        let content = std::mem::replace(&mut slot.content, Content::Vacant { next: free });
        self.free = key.slot;
        match content {
            Content::Occupied(value) => Some(value),
            Content::Vacant { .. } => None,
        }
    }

    fn slot_mut(&mut self, slot: u32) -> Option<&mut Slot<T>> {
        self.chunks.get_mut(slot as usize / CHUNK_SLOTS)?.get_mut(slot as usize % CHUNK_SLOTS)
    }

    fn grow(&mut self) {
        let first = self.slots();
        let last = first + CHUNK_SLOTS as u32 - 1;
        let free = self.free;
        let chunk = (first..=last).map(|slot| Slot {
            generation: 0,
            content: Content::Vacant { next: if slot == last { free } else { slot + 1 } },
        });
        self.chunks.push(chunk.collect());
        self.free = first;
    }
}

/// One value per slot, for those who keep something beside the slab.
pub struct Table<T> {
    chunks: Vec<Box<[T]>>,
}

impl<T: Default> Table<T> {
    /// An empty table.
    pub fn new() -> Self {
        Self { chunks: Vec::new() }
    }

    /// The slot's value; the table grows up to it.
    pub fn at(&mut self, slot: u32) -> &mut T {
        let chunk = slot as usize / CHUNK_SLOTS;
        while self.chunks.len() <= chunk {
            self.chunks.push((0..CHUNK_SLOTS).map(|_| T::default()).collect());
        }
        &mut self.chunks[chunk][slot as usize % CHUNK_SLOTS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_key_finds_nobody() {
        let mut slab = Slab::new();
        let first = slab.insert("first");
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert("second");
        assert_eq!(first.slot, second.slot);
        assert_eq!((slab.get(first), slab.get(second)), (None, Some(&"second")));
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.key_at(first.slot), Some(second));
    }

    #[test]
    fn values_keep_their_slots_while_it_grows() {
        let mut slab = Slab::new();
        let keys: Vec<Key> = (0..3000).map(|value| slab.insert(value)).collect();
        assert!(keys.iter().enumerate().all(|(value, &key)| slab.get(key) == Some(&value)));
        assert_eq!(slab.slots(), 3072);
    }
}
