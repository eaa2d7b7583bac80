//! Access tokens: verified purely, from the token's bytes, a set of keys and the time.
