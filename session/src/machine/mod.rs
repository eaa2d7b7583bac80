//! The session: bytes, commands and the time go in; bytes, events and deadlines come out.
