//! A guest that behaves, from contact to unload.

mod common;

use common::{Echo, Event, INTERFACE, LINUX, Machine, exchange};
use std::sync::Arc;
use std::time::Duration;
use vmbus::bus::{BusConfig, BusHandle, SocketListener};
use vmbus::protocol::*;
use vmbus::server::OfferParams;

#[test]
fn every_version_connects() {
    let mut machine = Machine::new();
    for version in Version::SUPPORTED {
        assert_eq!(machine.client.connect(&[version]), Ok(version));
        assert_eq!(machine.bus.version(), Some(version));
    }
    machine.client.unload().unwrap();
    assert_eq!(machine.bus.version(), None);
}

#[test]
fn a_guest_falls_back_to_an_older_version() {
    let max_version = Some(Version::WIN10);
    let mut machine = Machine::with_config(BusConfig {
        max_version,
        sockets: None,
    });
    assert_eq!(machine.client.connect(&LINUX), Ok(Version::WIN10));
    let newer = [Version::new(7, 0), Version::IRON, Version::new(5, 9)];
    assert_eq!(
        machine.client.connect(&newer),
        Err(vmbus::client::ClientError::Refused)
    );
}

#[test]
fn offers_come_in_a_stable_order() {
    let mut machine = Machine::new();
    let other = Guid::from_u128(1);
    for (interface, instance, order) in [(INTERFACE, 3, 0), (INTERFACE, 1, 1), (other, 9, 5)] {
        let params = OfferParams {
            order,
            ..OfferParams::new(interface, Guid::from_u128(instance))
        };
        machine.bus.offer(Echo::with_params(params).0).unwrap();
    }
    machine.client.connect(&LINUX).unwrap();
    let first = machine.client.request_offers().unwrap();
    let instances: Vec<u128> = first
        .iter()
        .map(|offer| offer.instance_id.to_u128())
        .collect();
    assert_eq!(instances, [9, 3, 1]);
    let ids: Vec<u32> = first.iter().map(|offer| offer.channel_id).collect();
    assert_eq!(ids, [1, 2, 3]);
    for offer in &first {
        assert_eq!((offer.is_dedicated, offer.monitor_allocated), (1, 0));
        assert_eq!(offer.connection_id, 0x2000 + offer.channel_id);
    }
    machine.client.unload().unwrap();
    machine.client.connect(&LINUX).unwrap();
    assert_eq!(machine.client.request_offers().unwrap(), first);
    // Another, while the guest runs.
    machine.bus.offer(Echo::new(77).0).unwrap();
    let hot: OfferChannel = machine.client.expect().unwrap();
    assert_eq!((hot.instance_id.to_u128(), hot.channel_id), (77, 4));
}

#[test]
fn channels_open_work_close_and_open_again() {
    let (mut machine, offers, events) = Machine::with_echo();
    for round in 0..5 {
        // 80 pages need GPADL bodies.
        let pages = machine.pages(80, round);
        let mut channel = machine.client.open(&offers[0], &pages).unwrap();
        assert_eq!(events.recv().unwrap(), Event::Opened(1));
        assert_eq!(machine.partition.ports(), [1, 4, 0x2001]);
        exchange(&mut channel, 500, |n| n as usize % 3000);
        machine.client.close(channel).unwrap();
        assert_eq!(
            events.recv().unwrap(),
            Event::Ended(vmbus::bus::ChannelError::Closed)
        );
        assert_eq!(events.recv().unwrap(), Event::Closed);
        assert_eq!(machine.partition.ports(), [1, 4]);
    }
    machine.client.unload().unwrap();
    machine.bus.stop();
    assert_eq!(events.recv().unwrap(), Event::Dropped);
    assert_eq!(machine.partition.ports(), [0_u32; 0]);
}

#[test]
fn a_rescinded_channel_is_gone_once_released() {
    let mut machine = Machine::new();
    let (echo, events) = Echo::new(1);
    let offer = machine.bus.offer(echo).unwrap();
    machine.client.connect(&LINUX).unwrap();
    let offers = machine.client.request_offers().unwrap();
    let channel = machine
        .client
        .open(&offers[0], &machine.pages(4, 0))
        .unwrap();
    assert_eq!(events.recv().unwrap(), Event::Opened(1));
    machine.bus.revoke(offer);
    assert_eq!(
        events.recv().unwrap(),
        Event::Ended(vmbus::bus::ChannelError::Closed)
    );
    assert_eq!(events.recv().unwrap(), Event::Closed);
    assert_eq!(
        events.recv().unwrap(),
        Event::Dropped,
        "though the guest still has the id"
    );
    // A new one of the same kind waits for the old one's release.
    let (echo, again) = Echo::new(1);
    machine.bus.offer(echo).unwrap();
    assert!(
        machine
            .client
            .poll::<OfferChannel>(Duration::from_millis(50))
            .is_none()
    );
    machine.client.close(channel).unwrap();
    assert_eq!(machine.client.release_rescinded(), Ok(1));
    let offer: OfferChannel = machine.client.expect().unwrap();
    assert_eq!(offer.instance_id.to_u128(), 1);
    let mut channel = machine.client.open(&offer, &machine.pages(4, 1)).unwrap();
    exchange(&mut channel, 10, |_| 8);
    assert_eq!(
        again.recv().unwrap(),
        Event::Opened(offer.channel_id as u16)
    );
}

#[test]
fn unload_and_contact_close_what_is_open() {
    let mut machine = Machine::new();
    let (echo, events) = Echo::new(1);
    machine.bus.offer(echo).unwrap();
    let ended = Event::Ended(vmbus::bus::ChannelError::Closed);
    // By unload, by a crashed guest's successor, and by a reset.
    for way in 0..3 {
        machine.client.connect(&LINUX).unwrap();
        let offers = machine.client.request_offers().unwrap();
        let mut channel = machine
            .client
            .open(&offers[0], &machine.pages(8, way))
            .unwrap();
        exchange(&mut channel, 10, |_| 100);
        match way {
            0 => machine.client.unload().unwrap(),
            1 => machine.client.connect(&LINUX).map(|_| ()).unwrap(),
            _ => machine.bus.reset(),
        }
        assert_eq!(machine.bus.version().is_some(), way == 1);
        let seen: Vec<Event> = events.try_iter().collect();
        assert_eq!(seen, [Event::Opened(1), ended.clone(), Event::Closed]);
    }
}

/// Takes sockets for service 1 and no others.
struct Listener;

impl SocketListener for Listener {
    fn connect(&self, bus: &BusHandle, endpoint: Guid, service: Guid, silo: Guid) {
        assert_eq!(silo, Guid::from_u128(3));
        if service == Guid::from_u128(1) {
            let mut params = OfferParams::new(service, endpoint);
            params.flags = OfferFlags::TLNPI_PROVIDER;
            bus.offer(Echo::with_params(params).0).unwrap();
            bus.tl_connect_done(endpoint, service, ntstatus::SUCCESS);
        } else {
            bus.tl_connect_done(endpoint, service, ntstatus::CONNECTION_REFUSED);
        }
    }
}

#[test]
fn sockets_are_offered_or_refused() {
    let sockets: Option<Arc<dyn SocketListener>> = Some(Arc::new(Listener));
    let mut machine = Machine::with_config(BusConfig {
        max_version: None,
        sockets,
    });
    machine.client.connect(&LINUX).unwrap();
    machine.client.request_offers().unwrap();
    let request = |service| TlConnectRequest2 {
        base: TlConnectRequest {
            endpoint_id: Guid::from_u128(9),
            service_id: Guid::from_u128(service),
        },
        silo_id: Guid::from_u128(3),
    };
    for _ in 0..100 {
        machine.client.post(&request(2));
        let result: TlConnectResult = machine.client.expect().unwrap();
        assert_eq!(result.status, ntstatus::CONNECTION_REFUSED);
    }
    machine.client.post(&request(1));
    let offer: OfferChannel = machine.client.expect().unwrap();
    assert_eq!(offer.offer_flags(), OfferFlags::TLNPI_PROVIDER);
    let mut channel = machine.client.open(&offer, &machine.pages(4, 0)).unwrap();
    exchange(&mut channel, 10, |_| 1);
}

#[test]
fn millions_of_packets_both_ways() {
    let (mut machine, offers, _) = Machine::with_echo();
    let mut channel = machine
        .client
        .open(&offers[0], &machine.pages(64, 0))
        .unwrap();
    let scramble = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    // Small ones at volume, then sizes up to most of the ring.
    exchange(&mut channel, 1_000_000, |n| (scramble(n) % 64) as usize);
    exchange(&mut channel, 20_000, |n| (scramble(n) % 60_000) as usize);
    machine.client.close(channel).unwrap();
}
