//! Versions, targets, pauses, unload.

use super::*;

#[test]
fn each_version_and_its_answer() {
    for version in Version::SUPPORTED {
        let mut driver = Driver::new();
        driver.contact(4, &contact(version)).unwrap();
        let [Effect::DiscardMessages, Effect::Send { message, .. }] = &driver.take()[..] else {
            panic!();
        };
        let response: VersionResponse = message.body().unwrap();
        assert_eq!(response.version_supported, 1);
        assert_eq!(response.connection_state, ConnectionState::SUCCESSFUL);
        let selected = if version >= Version::new(5, 0) {
            1
        } else {
            version.0
        };
        assert_eq!(response.selected_version_or_connection_id, selected);
        let features = message
            .body::<VersionResponse2>()
            .map(|body| body.supported_features);
        let copper = version == Version::COPPER;
        assert_eq!(features, copper.then_some(FeatureFlags::SUPPORTED.bits()));
        let in_force = if copper {
            FeatureFlags::SUPPORTED
        } else {
            FeatureFlags::empty()
        };
        assert_eq!(driver.server.version(), Some((version, in_force)));
    }
}

#[test]
fn other_versions_are_refused() {
    let high = Version::COPPER;
    for (max_version, version) in [
        (high, Version::V1),
        (high, Version::WIN7),
        (high, Version::new(2, 3)),
        (high, Version::new(5, 4)),
        (high, Version::new(6, 1)),
        (high, Version(u32::MAX)),
        (Version::WIN10, Version::IRON),
    ] {
        let mut driver = Driver::with_config(ServerConfig {
            max_version,
            ..ServerConfig::new(1)
        });
        driver.contact(1, &contact(version)).unwrap();
        driver.effects.remove(0);
        let response: VersionResponse = driver.reply();
        assert_eq!(response, VersionResponse::default(), "{version}");
        assert_eq!(driver.server.version(), None);
        assert_eq!(
            driver.post(&RequestOffers {}),
            Err(Violation::NotConnected(MessageType::REQUEST_OFFERS))
        );
    }
}

/// Where the answer to a contact goes, and whether it is good.
fn target(connection_id: u32, contact: &InitiateContact) -> (u32, u8, bool) {
    let mut driver = Driver::new();
    // A violation does not keep the answer away.
    let _ = driver.contact(connection_id, contact);
    match driver.effects.last() {
        Some(Effect::Send { vp, sint, message }) => {
            let response: VersionResponse = message.body().unwrap();
            assert_eq!(response.version_supported, 1);
            let state = response.connection_state;
            let good = state == ConnectionState::SUCCESSFUL;
            assert_eq!(good, driver.server.version().is_some());
            (*vp, *sint, good)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn where_messages_go() {
    let with = |version, vp, sint, vtl| InitiateContact {
        target_message_vp: vp,
        interrupt_page_or_target_info: TargetInfo {
            sint,
            vtl,
            ..TargetInfo::default()
        }
        .to_field(),
        ..contact(version)
    };
    assert_eq!(target(1, &with(Version::WIN8, 3, 5, 0)), (0, 2, true));
    assert_eq!(target(1, &with(Version::WIN8_1, 3, 5, 0)), (3, 2, true));
    assert_eq!(target(4, &with(Version::WIN10, 3, 5, 0)), (3, 2, true));
    assert_eq!(
        target(4, &with(Version::WIN10_RS3_1, 3, 5, 9)),
        (3, 5, true)
    );
    assert_eq!(
        target(1, &with(Version::WIN10_RS3_1, 3, 5, 9)),
        (3, 2, true)
    );
    assert_eq!(
        target(4, &with(Version::IRON, 3, 5, 1)),
        (3, 5, false),
        "no other VTL"
    );
    assert_eq!(
        target(4, &with(Version::IRON, 4, 5, 0)),
        (0, 5, false),
        "no such processor"
    );
    assert_eq!(
        target(4, &with(Version::IRON, 0, 16, 0)),
        (0, 2, false),
        "no such SINT"
    );
}

#[test]
fn monitor_pages_come_in_pairs() {
    let mut one = contact(Version::IRON);
    one.child_to_parent_monitor_page_gpa = 0;
    assert_eq!(target(4, &one), (0, 2, false));
    one.parent_to_child_monitor_page_gpa = 0;
    assert_eq!(target(4, &one), (0, 2, true));
}

#[test]
fn modify_connection_needs_its_feature() {
    let mut driver = Driver::connected(Version::IRON);
    let good = ModifyConnection::default();
    let unexpected = Violation::Unexpected(MessageType::MODIFY_CONNECTION);
    assert_eq!(driver.post(&good), Err(unexpected));
    driver.connect(Version::COPPER);
    driver.post(&good).unwrap();
    let response: ModifyConnectionResponse = driver.reply();
    assert_eq!(response.connection_state, ConnectionState::SUCCESSFUL);
    let one = ModifyConnection {
        parent_to_child_monitor_page_gpa: 0x1000,
        ..good
    };
    assert_eq!(driver.post(&one), Err(Violation::MonitorPages));
    let response: ModifyConnectionResponse = driver.reply();
    assert_eq!(
        response.connection_state,
        ConnectionState::FAILED_UNKNOWN_FAILURE
    );
}

#[test]
fn a_paused_guest_is_left_alone() {
    let mut driver = Driver::connected(Version::COPPER);
    driver.post(&Pause {}).unwrap();
    driver.reply::<PauseResponse>();
    driver.offer(1);
    assert_eq!(driver.take(), []);
    let gone = Violation::NotConnected(MessageType::OPEN_CHANNEL);
    assert_eq!(driver.post(&open_message(1, 1)), Err(gone));
    assert_eq!(driver.server.usage().held_messages, 1);
    driver.post(&Resume {}).unwrap();
    driver.reply::<OfferChannel>();
    // What is held is for this connection only.
    driver.post(&Pause {}).unwrap();
    driver.offer(2);
    driver.connect(Version::COPPER);
    assert_eq!(driver.server.usage().held_messages, 0);
    driver.post(&Pause {}).unwrap();
    driver.take();
    driver.post(&Unload {}).unwrap();
    assert!(matches!(
        driver.take()[..],
        [Effect::DiscardMessages, Effect::Send { .. }]
    ));
}

#[test]
fn unload_is_always_answered() {
    let mut driver = Driver::new();
    driver.post(&Unload {}).unwrap();
    driver.effects.remove(0);
    driver.reply::<UnloadComplete>();
    driver.connect(Version::IRON);
    driver.post(&Unload {}).unwrap();
    driver.effects.remove(0);
    driver.reply::<UnloadComplete>();
    assert_eq!(driver.server.version(), None);
    assert!(driver.server.is_disconnected());
}

#[test]
fn a_disconnect_waits_for_the_devices() {
    let mut driver = Driver::connected(Version::IRON);
    let (offer, channel) = driver.offered(1);
    driver.gpadl(channel, 9, &[1, 2, 3, 4]);
    driver.opened(offer, channel, 9);
    driver.post(&Unload {}).unwrap();
    let close = driver.closes()[0];
    // Once more, and a new guest: the last of them is answered.
    driver.post(&Unload {}).unwrap();
    driver.contact(4, &contact(Version::WIN10)).unwrap();
    assert_eq!(
        driver.take(),
        [Effect::DiscardMessages, Effect::DiscardMessages]
    );
    let unconnected = Violation::NotConnected(MessageType::REQUEST_OFFERS);
    assert_eq!(driver.post(&RequestOffers {}), Err(unconnected));
    driver.close_done(close);
    driver.reply::<VersionResponse>();
    assert_eq!(driver.server.version().unwrap().0, Version::WIN10);
    assert_eq!(driver.server.usage().gpadls, 0);
}

#[test]
fn a_reset_needs_no_answer() {
    let mut driver = Driver::connected(Version::IRON);
    let (offer, channel) = driver.offered(1);
    driver.gpadl(channel, 9, &[1, 2, 3, 4]);
    driver.opened(offer, channel, 9);
    driver.input(Input::Reset);
    assert!(!driver.server.is_disconnected());
    let close = driver.closes()[0];
    driver.close_done(close);
    assert_eq!(driver.take(), []);
    assert!(driver.server.is_disconnected());
}

#[test]
fn offers_are_requested_once() {
    let mut driver = Driver::new();
    driver.offer(1);
    driver.contact(4, &contact(Version::IRON)).unwrap();
    driver.take();
    driver.post(&RequestOffers {}).unwrap();
    let kinds: Vec<_> = driver
        .sent()
        .iter()
        .map(ControlMessage::message_type)
        .collect();
    assert_eq!(
        kinds,
        [
            MessageType::OFFER_CHANNEL,
            MessageType::ALL_OFFERS_DELIVERED
        ]
    );
    assert_eq!(
        driver.post(&RequestOffers {}),
        Err(Violation::OffersRequested)
    );
    assert_eq!(driver.take(), []);
}

#[test]
fn offers_wait_until_they_are_requested() {
    let mut driver = Driver::new();
    driver.contact(4, &contact(Version::IRON)).unwrap();
    driver.take();
    driver.offer(1);
    assert_eq!(driver.take(), []);
}

#[test]
fn messages_belong_to_versions() {
    let modify = ModifyChannel {
        channel_id: 1,
        target_vp: 0,
    };
    let mut driver = Driver::connected(Version::WIN10);
    assert_eq!(
        driver.post(&modify),
        Err(Violation::Unexpected(MessageType::MODIFY_CHANNEL))
    );
    let host_only = Driver::connected(Version::COPPER).post(&AllOffersDelivered {});
    assert_eq!(
        host_only,
        Err(Violation::Unexpected(MessageType::ALL_OFFERS_DELIVERED))
    );
    let mut driver = Driver::connected(Version::WIN8);
    let socket = TlConnectRequest::default();
    assert_eq!(
        driver.post(&socket),
        Err(Violation::Unexpected(MessageType::TL_CONNECT_REQUEST))
    );
    for bytes in [
        &[][..],
        &[1, 0, 0, 0],
        &[99, 0, 0, 0, 0, 0, 0, 0],
        &[5, 0, 0, 0, 0, 0, 0, 0, 1],
    ] {
        let input = Input::Message {
            connection_id: 1,
            bytes,
        };
        assert!(driver.server.handle(input, &mut driver.effects).is_err());
    }
    assert_eq!(driver.take(), []);
}
