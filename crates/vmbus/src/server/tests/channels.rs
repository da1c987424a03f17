//! Opening, closing, moving, revoking and releasing.

use super::*;

fn failed(channel_id: u32) -> OpenChannelResult {
    let status = ntstatus::UNSUCCESSFUL;
    OpenChannelResult {
        channel_id,
        open_id: 70 + channel_id,
        status,
    }
}

/// A channel with a GPADL 9 for its rings.
fn ready(version: Version) -> (Driver, OfferId, u32) {
    let mut driver = Driver::connected(version);
    let (offer, channel) = driver.offered(1);
    driver.gpadl(channel, 9, &[1, 2, 3, 4]);
    (driver, offer, channel)
}

#[test]
fn what_the_device_is_told() {
    let (mut driver, offer, channel) = ready(Version::IRON);
    driver.post(&open_message(channel, 9)).unwrap();
    let effects = driver.take();
    let [Effect::Open(request)] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(
        (request.offer, request.channel_id, request.connection_id),
        (offer, 1, 0x2001)
    );
    assert_eq!(
        (request.target_vp, request.sint, request.reserved),
        (Some(1), 2, false)
    );
    assert_eq!((request.downstream_page, request.user_data), (2, [5; 120]));
    assert_eq!(request.ring[0].pfns, [1, 2, 3, 4]);
}

#[test]
fn interrupts_can_be_off() {
    let (mut driver, _, channel) = ready(Version::IRON);
    let target_vp = VP_INDEX_DISABLE_INTERRUPT;
    driver
        .post(&OpenChannel {
            target_vp,
            ..open_message(channel, 9)
        })
        .unwrap();
    assert!(matches!(
        &driver.take()[..],
        [Effect::Open(OpenRequest {
            target_vp: None,
            ..
        })]
    ));
}

#[test]
fn a_device_may_refuse() {
    let (mut driver, offer, channel) = ready(Version::IRON);
    let sequence = driver.open(channel, 9);
    driver.input(Input::OpenDone {
        offer,
        sequence: sequence + 1,
        opened: true,
    });
    assert_eq!(driver.take(), [], "an answer to another request");
    driver.input(Input::OpenDone {
        offer,
        sequence,
        opened: false,
    });
    assert_eq!(driver.reply::<OpenChannelResult>(), failed(channel));
    driver.opened(offer, channel, 9);
}

#[test]
fn unusable_requests_are_refused() {
    let (mut driver, _, channel) = ready(Version::IRON);
    driver.gpadl(channel, 10, &[1, 2, 3]);
    let good = open_message(channel, 9);
    for (wrong, violation) in [
        (
            OpenChannel {
                target_vp: 4,
                ..good
            },
            Violation::Target(channel),
        ),
        (
            OpenChannel {
                ring_buffer_gpadl_id: 8,
                ..good
            },
            Violation::Ring(channel),
        ),
        (
            OpenChannel {
                ring_buffer_gpadl_id: 10,
                ..good
            },
            Violation::Ring(channel),
        ),
        (
            OpenChannel {
                downstream_ring_buffer_page_offset: 1,
                ..good
            },
            Violation::Ring(channel),
        ),
        (
            OpenChannel {
                downstream_ring_buffer_page_offset: 3,
                ..good
            },
            Violation::Ring(channel),
        ),
        (
            OpenChannel {
                downstream_ring_buffer_page_offset: 9,
                ..good
            },
            Violation::Ring(channel),
        ),
    ] {
        assert_eq!(driver.post(&wrong), Err(violation));
        assert_eq!(driver.reply::<OpenChannelResult>(), failed(channel));
    }
    assert_eq!(
        driver.post(&open_message(2, 9)),
        Err(Violation::NoChannel(2))
    );
    assert_eq!(driver.reply::<OpenChannelResult>(), failed(2));
    assert_eq!(
        driver.post(&open_message(0x1_0001, 9)),
        Err(Violation::NoChannel(0x1_0001))
    );
}

#[test]
fn closing_while_opening() {
    let (mut driver, offer, channel) = ready(Version::IRON);
    let sequence = driver.open(channel, 9);
    driver
        .post(&CloseChannel {
            channel_id: channel,
        })
        .unwrap();
    let close = driver.closes()[0];
    driver.input(Input::OpenDone {
        offer,
        sequence,
        opened: true,
    });
    assert_eq!(driver.take(), [], "the guest does not wait any more");
    driver.close_done(close);
    assert_eq!(driver.take(), []);
    driver.opened(offer, channel, 9);
}

#[test]
fn opening_while_closing() {
    let (mut driver, offer, channel) = ready(Version::IRON);
    driver.opened(offer, channel, 9);
    driver
        .post(&CloseChannel {
            channel_id: channel,
        })
        .unwrap();
    let close = driver.closes()[0];
    driver.post(&open_message(channel, 9)).unwrap();
    assert_eq!(driver.take(), []);
    assert_eq!(
        driver.post(&open_message(channel, 9)),
        Err(Violation::ChannelState(channel))
    );
    assert_eq!(driver.reply::<OpenChannelResult>(), failed(channel));
    driver.close_done((close.0, close.1 + 1));
    assert_eq!(driver.take(), []);
    driver.close_done(close);
    assert!(matches!(driver.take()[..], [Effect::Open(_)]));
}

#[test]
fn reopening_may_be_taken_back_or_fail() {
    let (mut driver, offer, channel) = ready(Version::IRON);
    driver.opened(offer, channel, 9);
    driver
        .post(&CloseChannel {
            channel_id: channel,
        })
        .unwrap();
    let close = driver.closes()[0];
    driver.post(&open_message(channel, 9)).unwrap();
    driver
        .post(&CloseChannel {
            channel_id: channel,
        })
        .unwrap();
    driver.post(&open_message(channel, 8)).unwrap();
    driver.close_done(close);
    assert_eq!(
        driver.reply::<OpenChannelResult>(),
        failed(channel),
        "no such ring"
    );
    let wrong = Violation::ChannelState(channel);
    assert_eq!(
        driver.post(&CloseChannel {
            channel_id: channel
        }),
        Err(wrong)
    );
    assert_eq!(
        driver.post(&CloseChannel { channel_id: 5 }),
        Err(Violation::NoChannel(5))
    );
}

#[test]
fn channels_move_between_processors() {
    for version in [Version::WIN10_RS3, Version::IRON] {
        let (mut driver, offer, channel) = ready(version);
        let mut modify = ModifyChannel {
            channel_id: channel,
            target_vp: 3,
        };
        let mut statuses = Vec::new();
        let mut results = vec![driver.post(&modify)];
        statuses.extend(driver.sent());
        driver.opened(offer, channel, 9);
        results.push(driver.post(&modify));
        assert_eq!(driver.effects.remove(0), Effect::SetTarget { offer, vp: 3 });
        statuses.extend(driver.sent());
        for vp in [4, VP_INDEX_DISABLE_INTERRUPT] {
            modify.target_vp = vp;
            results.push(driver.post(&modify));
            statuses.extend(driver.sent());
        }
        let (state, target) = (Violation::ChannelState(channel), Violation::Target(channel));
        assert_eq!(results, [Err(state), Ok(()), Err(target), Err(target)]);
        let statuses: Vec<u32> = statuses
            .iter()
            .map(|message| message.body::<ModifyChannelResponse>().unwrap().status)
            .collect();
        let bad = ntstatus::UNSUCCESSFUL;
        let answers: &[u32] = if version == Version::IRON {
            &[bad, 0, bad, bad]
        } else {
            &[]
        };
        assert_eq!(statuses, answers);
    }
}

#[test]
fn revoking_what_the_guest_does_not_know() {
    let mut driver = Driver::new();
    let offer = driver.offer(1);
    driver.input(Input::Revoke(offer));
    assert_eq!(driver.take(), [Effect::Removed(offer)]);
    driver.input(Input::Revoke(offer));
    assert_eq!(driver.take(), []);
}

#[test]
fn revoking_a_closed_channel() {
    let (mut driver, offer, channel) = ready(Version::IRON);
    driver.input(Input::Revoke(offer));
    assert_eq!(driver.reply::<RescindChannelOffer>().channel_id, channel);
    driver.input(Input::Revoke(offer));
    assert_eq!(driver.take(), [], "once is enough");
    // What the guest sent before it knew.
    assert_eq!(
        driver.post(&open_message(channel, 9)),
        Err(Violation::ChannelState(channel))
    );
    assert_eq!(driver.reply::<OpenChannelResult>(), failed(channel));
    driver
        .post(&CloseChannel {
            channel_id: channel,
        })
        .unwrap();
    driver.gpadl(channel, 10, &[7]);
    driver
        .post(&RelIdReleased {
            channel_id: channel,
        })
        .unwrap();
    assert_eq!(driver.take(), [Effect::Removed(offer)]);
    assert_eq!(driver.server.usage(), ServerUsage::default());
    // The id is free again.
    assert_eq!(driver.offered(2).1, channel);
}

#[test]
fn revoking_an_open_channel() {
    let (mut driver, offer, channel) = ready(Version::IRON);
    driver.opened(offer, channel, 9);
    driver.input(Input::Revoke(offer));
    let effects = driver.take();
    let [Effect::Close { sequence, .. }, Effect::Send { .. }] = effects[..] else {
        panic!("{effects:?}");
    };
    // The guest is quicker than the device.
    driver
        .post(&CloseChannel {
            channel_id: channel,
        })
        .unwrap();
    driver
        .post(&GpadlTeardown {
            channel_id: channel,
            gpadl_id: 9,
        })
        .unwrap();
    driver
        .post(&RelIdReleased {
            channel_id: channel,
        })
        .unwrap();
    assert_eq!(driver.take(), [Effect::ReleaseGpadl { offer, gpadl_id: 9 }]);
    driver.close_done((offer, sequence));
    assert_eq!(driver.take(), [Effect::Removed(offer)]);
    assert_eq!(driver.server.usage(), ServerUsage::default());
}

#[test]
fn revoking_while_opening_or_reopening() {
    let (mut driver, offer, channel) = ready(Version::IRON);
    let sequence = driver.open(channel, 9);
    driver.input(Input::Revoke(offer));
    let close = match driver.effects.remove(0) {
        Effect::Close { offer, sequence } => (offer, sequence),
        other => panic!("{other:?}"),
    };
    let sent = driver.sent();
    assert_eq!(sent[0].body(), Some(failed(channel)));
    assert_eq!(sent[1].message_type(), MessageType::RESCIND_CHANNEL_OFFER);
    driver.input(Input::OpenDone {
        offer,
        sequence,
        opened: true,
    });
    driver.close_done(close);
    assert_eq!(driver.take(), []);

    let (mut driver, offer, channel) = ready(Version::IRON);
    driver.opened(offer, channel, 9);
    driver
        .post(&CloseChannel {
            channel_id: channel,
        })
        .unwrap();
    driver.post(&open_message(channel, 9)).unwrap();
    let close = driver.closes()[0];
    driver.input(Input::Revoke(offer));
    let sent = driver.sent();
    assert_eq!(sent[0].body(), Some(failed(channel)));
    driver.close_done(close);
    assert_eq!(driver.take(), []);
}

#[test]
fn revoking_takes_the_subchannels_first() {
    let mut driver = Driver::connected(Version::IRON);
    let (primary, first) = driver.offered(1);
    let (other, _) = driver.offered(2);
    for index in 1..3 {
        driver
            .server
            .offer(params(1).subchannel(index), &mut driver.effects)
            .unwrap();
    }
    driver.take();
    driver.input(Input::Revoke(primary));
    let ids: Vec<u32> = driver
        .sent()
        .iter()
        .map(|message| message.body::<RescindChannelOffer>().unwrap().channel_id)
        .collect();
    assert_eq!(ids, [3, 4, first]);
    driver.input(Input::Revoke(other));
    assert_eq!(driver.reply::<RescindChannelOffer>().channel_id, 2);
}

#[test]
fn a_guest_that_disconnects_releases_what_was_revoked() {
    let (mut driver, offer, channel) = ready(Version::IRON);
    driver.opened(offer, channel, 9);
    driver.input(Input::Revoke(offer));
    let close = driver.closes()[0];
    driver.post(&Unload {}).unwrap();
    assert_eq!(driver.take(), [Effect::DiscardMessages]);
    driver.close_done(close);
    let effects = driver.take();
    assert!(
        matches!(effects[..], [Effect::Removed(_), Effect::Send { .. }]),
        "{effects:?}"
    );
}

#[test]
fn a_channel_that_the_guest_gives_back_stays_until_it_comes_again() {
    let (mut driver, offer, channel) = ready(Version::IRON);
    driver.opened(offer, channel, 9);
    driver
        .post(&RelIdReleased {
            channel_id: channel,
        })
        .unwrap();
    let close = driver.closes()[0];
    driver.close_done(close);
    assert_eq!(driver.take(), []);
    let gone = Violation::NoChannel(channel);
    assert_eq!(
        driver.post(&RelIdReleased {
            channel_id: channel
        }),
        Err(gone)
    );
    assert_eq!(driver.server.usage().gpadls, 0);
    driver.contact(4, &contact(Version::IRON)).unwrap();
    driver.take();
    driver.post(&RequestOffers {}).unwrap();
    assert_eq!(
        driver.sent()[0].body::<OfferChannel>().unwrap().channel_id,
        channel
    );
}

#[test]
fn a_successor_waits_for_the_release() {
    let (mut driver, offer, channel) = ready(Version::IRON);
    assert_eq!(
        driver.server.offer(params(1), &mut driver.effects),
        Err(OfferError::Duplicate)
    );
    driver.input(Input::Revoke(offer));
    driver.take();
    let successor = driver.offer(1);
    assert_eq!(driver.take(), []);
    driver
        .post(&RelIdReleased {
            channel_id: channel,
        })
        .unwrap();
    let effects = driver.take();
    assert!(
        matches!(effects[..], [Effect::Removed(_), Effect::Send { .. }]),
        "{effects:?}"
    );
    assert_eq!(driver.server.channel_id(successor), Some(channel as u16));
}
