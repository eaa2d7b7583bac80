//! One behaviour suite per port: every adapter passes it on the real thing, and differs in nothing that it can see.
