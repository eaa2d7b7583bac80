//! The rules of the numbering transaction, pure: what to look up, and what each record becomes.
