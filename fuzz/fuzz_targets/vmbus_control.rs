//! The bus's control plane: any messages of a guest, any order of answers of
//! the devices.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmbus::protocol::{
    ControlMessage, Guid, InitiateContact, MAX_MESSAGE_SIZE, TargetInfo, VMBUS_SINT, Version,
};
use vmbus::server::{Effect, Input, OfferId, OfferParams, OpenRequest, Server, ServerConfig};

/// Takes the input apart, byte by byte.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn next(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        head
    }
}

fn offer(server: &mut Server, kind: u8, effects: &mut Vec<Effect>) {
    let interface = Guid::from_u128(u128::from(kind & 1));
    let mut params = OfferParams::new(interface, Guid::from_u128(u128::from(kind >> 1 & 3)));
    params.subchannel_index = u16::from(kind >> 3 & 3);
    // One like it may be there already.
    let _ = server.offer(params, effects);
}

/// The devices' answer to an effect.
fn answer(effect: &Effect, opened: bool) -> Option<Input<'static>> {
    Some(match *effect {
        Effect::Open(OpenRequest {
            offer, sequence, ..
        }) => Input::OpenDone {
            offer,
            sequence,
            opened,
        },
        Effect::Close { offer, sequence } => Input::CloseDone { offer, sequence },
        Effect::ReleaseGpadl { offer, gpadl_id } => Input::GpadlReleased { offer, gpadl_id },
        Effect::TlConnect {
            endpoint_id,
            service_id,
            ..
        } => Input::TlConnectDone {
            endpoint_id,
            service_id,
            status: u32::from(opened),
        },
        _ => return None,
    })
}

fn connect(server: &mut Server, version: Version, effects: &mut Vec<Effect>) {
    let info = TargetInfo {
        sint: VMBUS_SINT,
        feature_flags: !0,
        ..TargetInfo::default()
    };
    let contact = InitiateContact {
        version_requested: version.0,
        interrupt_page_or_target_info: info.to_field(),
        ..InitiateContact::default()
    };
    let message = ControlMessage::new(&contact);
    let input = Input::Message {
        connection_id: 4,
        bytes: message.as_bytes(),
    };
    assert_eq!(server.handle(input, effects), Ok(()));
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    let mut server = Server::new(ServerConfig {
        sockets: true,
        ..ServerConfig::new(2)
    });
    let mut effects = Vec::new();
    let mut waiting: Vec<Effect> = Vec::new();
    while let Some(step) = bytes.next() {
        let value = bytes.next().unwrap_or(0);
        match step % 8 {
            0 => offer(&mut server, value, &mut effects),
            1 => {
                let _ = server.handle(Input::Revoke(OfferId(value.into())), &mut effects);
            }
            2 => {
                let versions = Version::SUPPORTED;
                connect(
                    &mut server,
                    versions[usize::from(value) % versions.len()],
                    &mut effects,
                );
            }
            3 if !waiting.is_empty() => {
                let effect = waiting.swap_remove(usize::from(value) % waiting.len());
                if let Some(input) = answer(&effect, step < 128) {
                    let _ = server.handle(input, &mut effects);
                }
            }
            _ => {
                let message = bytes.take(usize::from(value).min(MAX_MESSAGE_SIZE));
                let input = Input::Message {
                    connection_id: 1,
                    bytes: message,
                };
                // A violation is no failure of the server.
                let _ = server.handle(input, &mut effects);
            }
        }
        waiting.extend(
            effects
                .drain(..)
                .filter(|effect| answer(effect, true).is_some()),
        );
        let usage = server.usage();
        assert!(usage.channels < 2048 && usage.gpadls <= 16384);
        assert!(usage.gpadl_bytes <= 16 << 20);
    }
    // Whatever came before, a new guest gets through once the devices answer.
    connect(&mut server, Version::IRON, &mut effects);
    waiting.append(&mut effects);
    for effect in &waiting {
        if let Some(input @ Input::CloseDone { .. }) = answer(effect, true) {
            let _ = server.handle(input, &mut effects);
        }
    }
    assert_eq!(
        server.version().map(|(version, _)| version),
        Some(Version::IRON)
    );
    assert_eq!(server.usage().gpadl_bytes, 0);
});
