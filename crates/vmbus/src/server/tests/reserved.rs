//! Reserved channels.

use super::*;

fn reserved_open() -> (Driver, OfferId) {
    let mut driver = Driver::connected(Version::WIN10);
    let (offer, channel_id) = driver.offered(1);
    driver.gpadl(channel_id, 9, &[1, 2, 3, 4]);
    let message = OpenReservedChannel {
        channel_id,
        target_vp: 2,
        target_sint: 5,
        ring_buffer_gpadl_id: 9,
        downstream_ring_buffer_page_offset: 2,
    };
    let wrong = OpenReservedChannel {
        target_vp: 4,
        ..message
    };
    assert_eq!(driver.post(&wrong), Err(Violation::Target(1)));
    let wrong = OpenReservedChannel {
        target_sint: 16,
        ..message
    };
    assert_eq!(driver.post(&wrong), Err(Violation::Target(1)));
    let wrong = OpenReservedChannel {
        channel_id: 3,
        ..message
    };
    assert_eq!(driver.post(&wrong), Err(Violation::NoChannel(3)));
    driver.post(&message).unwrap();
    let effects = driver.take();
    let [
        Effect::Open(OpenRequest {
            sequence,
            target_vp: None,
            reserved: true,
            ..
        }),
    ] = effects[..]
    else {
        panic!("{effects:?}");
    };
    driver.input(Input::OpenDone {
        offer,
        sequence,
        opened: true,
    });
    assert_eq!(driver.take(), [], "there is no answer");
    assert_eq!(driver.post(&message), Err(Violation::ChannelState(1)));
    (driver, offer)
}

const CLOSE: CloseReservedChannel = CloseReservedChannel {
    channel_id: 1,
    target_vp: 3,
    target_sint: 6,
};

fn assert_response(effects: &[Effect]) {
    match effects {
        [
            Effect::Send {
                vp: 3,
                sint: 6,
                message,
            },
        ] => {
            let response: CloseReservedChannelResponse = message.body().unwrap();
            assert_eq!(response.channel_id, 1);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn they_outlive_unload() {
    let (mut driver, offer) = reserved_open();
    driver.post(&Unload {}).unwrap();
    assert!(matches!(
        driver.take()[..],
        [Effect::DiscardMessages, Effect::Send { .. }]
    ));
    assert_eq!(driver.server.usage().gpadls, 1);
    let wrong = CloseReservedChannel {
        target_vp: 9,
        ..CLOSE
    };
    assert_eq!(driver.post(&wrong), Err(Violation::Target(1)));
    driver.post(&CLOSE).unwrap();
    let close = driver.closes()[0];
    assert_eq!(close.0, offer);
    driver.close_done(close);
    assert_response(&driver.take());
    assert_eq!(driver.post(&CLOSE), Err(Violation::ChannelState(1)));
    assert_eq!(driver.server.usage().gpadls, 0);
    let unknown = CloseReservedChannel {
        channel_id: 7,
        ..CLOSE
    };
    assert_eq!(driver.post(&unknown), Err(Violation::NoChannel(7)));
}

#[test]
fn they_do_not_outlive_a_new_guest() {
    let (mut driver, _) = reserved_open();
    driver.post(&Unload {}).unwrap();
    driver.take();
    driver.contact(1, &contact(Version::WIN10)).unwrap();
    let close = driver.closes()[0];
    assert_eq!(driver.server.version(), None);
    driver.close_done(close);
    driver.reply::<VersionResponse>();
}

#[test]
fn they_take_no_gpadl_and_no_ordinary_message() {
    let (mut driver, _) = reserved_open();
    let header = GpadlHeader {
        channel_id: 1,
        gpadl_id: 4,
        len: 16,
        count: 1,
    };
    assert_eq!(
        driver.post_with(&header, &ranges(&[1])),
        Err(Violation::Gpadl(4))
    );
    driver.take();
    assert_eq!(
        driver.post(&CloseChannel { channel_id: 1 }),
        Err(Violation::ChannelState(1))
    );
    assert_eq!(driver.take(), []);
    driver.post(&CLOSE).unwrap();
    let close = driver.closes()[0];
    driver.close_done(close);
    assert_response(&driver.take());
}

#[test]
fn they_can_be_revoked() {
    let (mut driver, offer) = reserved_open();
    driver.input(Input::Revoke(offer));
    let close = driver.closes()[0];
    driver.post(&CLOSE).unwrap();
    assert_eq!(driver.take(), []);
    driver.close_done(close);
    assert_response(&driver.take());
    driver.post(&Unload {}).unwrap();
    assert_eq!(driver.take()[1], Effect::Removed(offer));
}
