//! The Lua scripts, one file each.

use redis::Script;

pub(crate) struct Scripts {
    pub(crate) acquire: Script,
    pub(crate) renew: Script,
    pub(crate) complete: Script,
    pub(crate) release: Script,
    pub(crate) register: Script,
    pub(crate) unregister: Script,
    pub(crate) locate: Script,
    pub(crate) allow: Script,
}

impl Scripts {
    pub(crate) fn new() -> Self {
        Self {
            acquire: Script::new(include_str!("scripts/acquire.lua")),
            renew: Script::new(include_str!("scripts/renew.lua")),
            complete: Script::new(include_str!("scripts/complete.lua")),
            release: Script::new(include_str!("scripts/release.lua")),
            register: Script::new(include_str!("scripts/register.lua")),
            unregister: Script::new(include_str!("scripts/unregister.lua")),
            locate: Script::new(include_str!("scripts/locate.lua")),
            allow: Script::new(include_str!("scripts/allow.lua")),
        }
    }
}
