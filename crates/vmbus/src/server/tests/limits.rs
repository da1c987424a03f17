//! What a guest can make the host keep, and junk.

use super::*;
use crate::server::gpadl::RANGE_BYTES;

#[test]
fn channels_are_as_many_as_ids() {
    let mut driver = Driver::connected(Version::IRON);
    for instance in 1..2048 {
        driver.offer(instance);
    }
    let ids: Vec<u32> = driver
        .sent()
        .iter()
        .map(|message| message.body::<OfferChannel>().unwrap().channel_id)
        .collect();
    assert_eq!(ids, (1..2048).collect::<Vec<u32>>());
    let full = driver.server.offer(params(5000), &mut driver.effects);
    assert_eq!(full, Err(OfferError::Full));
}

#[test]
fn incomplete_gpadls_are_few() {
    let mut driver = Driver::connected(Version::IRON);
    let (_, channel_id) = driver.offered(1);
    for gpadl_id in 0..10_000 {
        let header = GpadlHeader {
            channel_id,
            gpadl_id,
            len: u16::MAX,
            count: 1,
        };
        let result = driver.post(&header);
        assert_eq!(result.is_ok(), gpadl_id < 64);
    }
    assert_eq!(driver.server.usage().gpadls, 64);
}

#[test]
fn gpadls_have_a_limit_in_number_and_size() {
    let mut driver = Driver::connected(Version::IRON);
    let (_, channel_id) = driver.offered(1);
    let list = ranges(&[1]);
    let mut taken = 0;
    for gpadl_id in 0..20_000 {
        let header = GpadlHeader {
            channel_id,
            gpadl_id,
            len: 16,
            count: 1,
        };
        taken += u32::from(driver.post_with(&header, &list).is_ok());
        driver.effects.clear();
    }
    assert_eq!(taken, 16384);
    driver.connect(Version::IRON);
    let list = ranges(&vec![1; 8000]);
    let mut taken = 0;
    for gpadl_id in 0..1000 {
        let len = list.len() as u16;
        let _ = driver.post_with(
            &GpadlHeader {
                channel_id,
                gpadl_id,
                len,
                count: 1,
            },
            &[],
        );
        for part in list.chunks(224) {
            let _ = driver.post_with(
                &GpadlBody {
                    message_number: 0,
                    gpadl_id,
                },
                part,
            );
        }
        taken += u32::from(driver.server.gpadl(OfferId(1), gpadl_id).is_some());
        driver.effects.clear();
    }
    assert_eq!(taken as usize, (16 << 20) / (list.len() + RANGE_BYTES));
    assert!(driver.server.usage().gpadl_bytes <= 16 << 20);
}

#[test]
fn many_small_ranges_count_for_what_they_take() {
    let mut driver = Driver::connected(Version::IRON);
    let (_, channel_id) = driver.offered(1);
    // Ranges of one page each: the list is short, what it becomes is not.
    let list = ranges(&[1]).repeat(13);
    let mut taken = 0;
    for gpadl_id in 0..16384 {
        let header = GpadlHeader {
            channel_id,
            gpadl_id,
            len: list.len() as u16,
            count: 13,
        };
        let _ = driver.post_with(&header, &list);
        taken += usize::from(driver.server.gpadl(OfferId(1), gpadl_id).is_some());
        driver.effects.clear();
    }
    assert_eq!(taken, (16 << 20) / (list.len() + 13 * RANGE_BYTES));
}

#[test]
fn connect_requests_wait_in_a_short_queue() {
    let mut driver = Driver::with_config(ServerConfig {
        sockets: true,
        ..ServerConfig::new(1)
    });
    driver.connect(Version::IRON);
    let request = |n: u128| TlConnectRequest {
        endpoint_id: Guid::from_u128(n),
        service_id: Guid::from_u128(1),
    };
    for n in 0..16 {
        assert!(driver.server.wants_messages());
        driver.post(&request(n)).unwrap();
        assert!(matches!(driver.take()[..], [Effect::TlConnect { .. }]));
    }
    assert!(!driver.server.wants_messages());
    driver.post(&request(16)).unwrap();
    assert_eq!(
        driver.reply::<TlConnectResult>().status,
        ntstatus::CONNECTION_REFUSED
    );
    let TlConnectRequest {
        endpoint_id,
        service_id,
    } = request(3);
    driver.input(Input::TlConnectDone {
        endpoint_id,
        service_id,
        status: 7,
    });
    assert_eq!(driver.reply::<TlConnectResult>().status, 7);
    driver.input(Input::TlConnectDone {
        endpoint_id,
        service_id,
        status: 7,
    });
    assert_eq!(driver.take(), [], "it has been answered");
    assert!(driver.server.wants_messages());
    driver.connect(Version::WIN10);
    driver.post(&request(1)).unwrap();
    driver.take();
    let TlConnectRequest {
        endpoint_id,
        service_id,
    } = request(1);
    driver.input(Input::TlConnectDone {
        endpoint_id,
        service_id,
        status: 7,
    });
    assert_eq!(driver.take(), [], "4.0 has no such message");
}

#[test]
fn nobody_listens() {
    let mut driver = Driver::connected(Version::IRON);
    driver.post(&TlConnectRequest::default()).unwrap();
    assert_eq!(
        driver.reply::<TlConnectResult>().status,
        ntstatus::CONNECTION_REFUSED
    );
}

/// A small generator, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % limit
    }
}

/// A message whose fields are small numbers, so that many of them fit.
fn junk(random: &mut Random) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..8 + random.below(232))
        .map(|_| {
            if random.below(4) == 0 {
                random.below(4) as u8
            } else {
                0
            }
        })
        .collect();
    bytes[..4].copy_from_slice(&(random.below(31) as u32).to_le_bytes());
    if let Some(field) = bytes.get_mut(8..12) {
        field.copy_from_slice(&(random.below(5) as u32).to_le_bytes());
    }
    bytes
}

/// Answers devices' requests as a bus would, but in any order and late.
fn answer(driver: &mut Driver, waiting: &mut Vec<Effect>, random: &mut Random) {
    waiting.extend(driver.take().into_iter().filter(|effect| {
        matches!(
            effect,
            Effect::Open(_) | Effect::Close { .. } | Effect::ReleaseGpadl { .. }
        )
    }));
    while !waiting.is_empty() && random.below(3) > 0 {
        let effect = waiting.swap_remove(random.below(waiting.len() as u64) as usize);
        let input = match effect {
            Effect::Open(OpenRequest {
                offer, sequence, ..
            }) => Input::OpenDone {
                offer,
                sequence,
                opened: random.below(4) > 0,
            },
            Effect::Close { offer, sequence } => Input::CloseDone { offer, sequence },
            Effect::ReleaseGpadl { offer, gpadl_id } => Input::GpadlReleased { offer, gpadl_id },
            _ => continue,
        };
        driver.input(input);
    }
}

#[test]
fn junk_never_breaks_the_server() {
    for seed in 0..40 {
        let mut random = Random(seed);
        let mut driver = Driver::with_config(ServerConfig {
            sockets: true,
            ..ServerConfig::new(2)
        });
        let mut waiting = Vec::new();
        for step in 0..3000 {
            match random.below(40) {
                0 => driver.connect_if_idle(),
                1 => {
                    let _ = driver
                        .server
                        .offer(params(u128::from(random.below(4))), &mut driver.effects);
                }
                2 => driver.input(Input::Revoke(OfferId(1 + random.below(step + 1)))),
                3 => driver.gpadl_if_possible(1 + random.below(4) as u32),
                _ => {
                    let bytes = junk(&mut random);
                    let input = Input::Message {
                        connection_id: 1,
                        bytes: &bytes,
                    };
                    let _ = driver.server.handle(input, &mut driver.effects);
                }
            }
            answer(&mut driver, &mut waiting, &mut random);
            let usage = driver.server.usage();
            assert!(usage.channels < 2048 && usage.gpadls <= 16384 && usage.held_messages < 10_000);
        }
        // Whatever state it is in, a guest can start anew once devices answer.
        driver.contact(4, &contact(Version::IRON)).unwrap();
        for effect in waiting.into_iter().chain(driver.take()) {
            if let Effect::Close { offer, sequence } = effect {
                driver.input(Input::CloseDone { offer, sequence });
            }
        }
        assert_eq!(
            driver.server.version().map(|(version, _)| version),
            Some(Version::IRON)
        );
        assert_eq!(driver.server.usage().gpadl_bytes, 0);
    }
}

impl Driver {
    fn connect_if_idle(&mut self) {
        let _ = self.contact(4, &contact(Version::COPPER));
        let _ = self.post(&RequestOffers {});
    }

    fn gpadl_if_possible(&mut self, channel_id: u32) {
        let list = ranges(&[1, 2, 3, 4]);
        let header = GpadlHeader {
            channel_id,
            gpadl_id: 1,
            len: list.len() as u16,
            count: 1,
        };
        let _ = self.post_with(&header, &list);
        let _ = self.post(&open_message(channel_id, 1));
    }
}
