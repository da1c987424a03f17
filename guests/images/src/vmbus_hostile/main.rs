//! A guest that means harm to the channel bus and its storage: wrong messages, GPADLs, openings,
//! rings, lists of pages, floods, and races with what the host does.
//!
//! Controller 0 with a disk at LUN 0 is attacked. Controller 1 with a disk at LUN 0 is the
//! witness: its channel stays open meanwhile, and must go on. Every sector of both disks begins
//! with its number (see [`storage::mark`]). While the test `races::drive` runs, the host should
//! add and remove a drive at controller 0, LUN 1.
#![no_std]
#![no_main]

mod bus;
mod channel;
mod components;
mod connections;
mod floods;
mod gpadls;
mod messages;
mod openings;
mod races;
mod requests;
mod rig;
mod rings;
mod storage;
mod text;

use guest_kit::guest;

guest!(
    "vmbus-hostile",
    messages::before_contact,
    messages::versions,
    messages::kinds_and_lengths,
    gpadls::malformed,
    gpadls::incomplete,
    gpadls::endless,
    openings::refused,
    openings::twice,
    openings::reserved,
    rings::indices,
    rings::packets,
    rings::control_words,
    requests::pages,
    requests::lengths,
    requests::own_rings,
    floods::signals,
    floods::messages,
    floods::requests,
    floods::page_lists,
    connections::in_the_middle,
    connections::many,
    connections::unload,
    components::nonsense,
    races::ring,
    races::subchannel,
    races::drive,
    rig::heartbeat_lives,
    rig::disks_are_whole,
);
