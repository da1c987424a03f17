//! GPADLs over several messages, wrong ones, and taking them back.

use super::*;
use crate::server::gpadl::RANGE_BYTES;

fn created(driver: &mut Driver) -> u32 {
    driver.reply::<GpadlCreated>().status
}

#[test]
fn bodies_complete_a_gpadl() {
    let mut driver = Driver::connected(Version::IRON);
    let (offer, channel_id) = driver.offered(1);
    let pfns: Vec<u64> = (0..8000).map(|n| n * 3).collect();
    let list = ranges(&pfns);
    let len = list.len() as u16;
    driver
        .post_with(
            &GpadlHeader {
                channel_id,
                gpadl_id: 5,
                len,
                count: 1,
            },
            &list[..200],
        )
        .unwrap();
    assert!(driver.server.gpadl(offer, 5).is_none());
    for part in list[200..].chunks(224) {
        assert_eq!(driver.take(), []);
        driver
            .post_with(
                &GpadlBody {
                    message_number: 0,
                    gpadl_id: 5,
                },
                part,
            )
            .unwrap();
    }
    assert_eq!(created(&mut driver), 0);
    assert_eq!(driver.server.gpadl(offer, 5).unwrap()[0].pfns, pfns);
    assert_eq!(driver.server.usage().gpadl_bytes, list.len() + RANGE_BYTES);
    let stray = driver.post(&GpadlBody {
        message_number: 0,
        gpadl_id: 5,
    });
    assert_eq!(stray, Err(Violation::Gpadl(5)));
}

#[test]
fn full_size_messages_are_cut() {
    let mut driver = Driver::connected(Version::IRON);
    let (offer, channel_id) = driver.offered(1);
    let mut list = ranges(&[1, 2]);
    let len = list.len() as u16;
    list.resize(220, 0xff);
    driver
        .post_with(
            &GpadlHeader {
                channel_id,
                gpadl_id: 5,
                len,
                count: 1,
            },
            &list,
        )
        .unwrap();
    assert_eq!(created(&mut driver), 0);
    assert_eq!(driver.server.gpadl(offer, 5).unwrap()[0].pfns, [1, 2]);
}

#[test]
fn several_ranges() {
    let mut driver = Driver::connected(Version::IRON);
    let (offer, channel_id) = driver.offered(1);
    let list = [ranges(&[1]), ranges(&[2, 3])].concat();
    let len = list.len() as u16;
    driver
        .post_with(
            &GpadlHeader {
                channel_id,
                gpadl_id: 5,
                len,
                count: 2,
            },
            &list,
        )
        .unwrap();
    assert_eq!(created(&mut driver), 0);
    assert_eq!(driver.server.gpadl(offer, 5).unwrap().len(), 2);
    // A ring must be one range.
    assert_eq!(
        driver.post(&open_message(channel_id, 5)),
        Err(Violation::Ring(channel_id))
    );
}

#[test]
fn wrong_gpadls_are_refused() {
    let mut driver = Driver::connected(Version::IRON);
    let (_, channel_id) = driver.offered(1);
    let list = ranges(&[1, 2]);
    let good = GpadlHeader {
        channel_id,
        gpadl_id: 5,
        len: list.len() as u16,
        count: 1,
    };
    for wrong in [
        GpadlHeader {
            channel_id: 2,
            ..good
        },
        GpadlHeader { count: 0, ..good },
        GpadlHeader { count: 2, ..good },
        GpadlHeader { len: 0, ..good },
        GpadlHeader { len: 16, ..good },
    ] {
        assert_eq!(driver.post_with(&wrong, &list), Err(Violation::Gpadl(5)));
        assert_eq!(created(&mut driver), ntstatus::UNSUCCESSFUL);
    }
    assert_eq!(driver.server.usage().gpadl_bytes, 0);
    driver.post_with(&good, &list).unwrap();
    driver.take();
    assert_eq!(
        driver.post_with(&good, &list),
        Err(Violation::Gpadl(5)),
        "it exists"
    );
    assert_eq!(created(&mut driver), ntstatus::UNSUCCESSFUL);
}

#[test]
fn an_incomplete_id_is_taken_on_all_channels() {
    let mut driver = Driver::connected(Version::IRON);
    let (_, one) = driver.offered(1);
    let (_, two) = driver.offered(2);
    let header = GpadlHeader {
        channel_id: one,
        gpadl_id: 5,
        len: 24,
        count: 1,
    };
    driver.post(&header).unwrap();
    let other = GpadlHeader {
        channel_id: two,
        ..header
    };
    assert_eq!(driver.post(&other), Err(Violation::Gpadl(5)));
    driver.take();
    let body = GpadlBody {
        message_number: 0,
        gpadl_id: 5,
    };
    driver.post_with(&body, &ranges(&[1, 2])).unwrap();
    assert_eq!(driver.reply::<GpadlCreated>().channel_id, one);
    // Complete ones are told apart by their channel.
    driver.gpadl(two, 5, &[3]);
}

#[test]
fn teardown_waits_for_the_mappings() {
    let mut driver = Driver::connected(Version::IRON);
    let (offer, channel_id) = driver.offered(1);
    driver.gpadl(channel_id, 5, &[1, 2, 3, 4]);
    let teardown = GpadlTeardown {
        channel_id,
        gpadl_id: 5,
    };
    driver.post(&teardown).unwrap();
    assert_eq!(driver.take(), [Effect::ReleaseGpadl { offer, gpadl_id: 5 }]);
    assert!(driver.server.gpadl(offer, 5).is_none(), "no new mapping");
    assert_eq!(driver.post(&teardown), Err(Violation::Gpadl(5)));
    assert_eq!(
        driver.post(&open_message(channel_id, 5)),
        Err(Violation::Ring(channel_id))
    );
    driver.take();
    driver.input(Input::GpadlReleased { offer, gpadl_id: 5 });
    assert_eq!(driver.reply::<GpadlTorndown>().gpadl_id, 5);
    driver.input(Input::GpadlReleased { offer, gpadl_id: 5 });
    assert_eq!(driver.take(), []);
    assert_eq!(driver.server.usage().gpadl_bytes, 0);
}

#[test]
fn teardown_waits_for_the_ring() {
    let mut driver = Driver::connected(Version::IRON);
    let (offer, channel_id) = driver.offered(1);
    driver.gpadl(channel_id, 5, &[1, 2, 3, 4]);
    driver.opened(offer, channel_id, 5);
    driver
        .post(&GpadlTeardown {
            channel_id,
            gpadl_id: 5,
        })
        .unwrap();
    driver.input(Input::GpadlReleased { offer, gpadl_id: 5 });
    assert_eq!(driver.take(), [Effect::ReleaseGpadl { offer, gpadl_id: 5 }]);
    driver.post(&CloseChannel { channel_id }).unwrap();
    let close = driver.closes()[0];
    driver.close_done(close);
    assert_eq!(driver.reply::<GpadlTorndown>().gpadl_id, 5);
}

#[test]
fn a_guest_that_reopens_while_its_ring_goes() {
    let mut driver = Driver::connected(Version::IRON);
    let (offer, channel_id) = driver.offered(1);
    driver.gpadl(channel_id, 5, &[1, 2, 3, 4]);
    driver.opened(offer, channel_id, 5);
    driver.post(&CloseChannel { channel_id }).unwrap();
    driver.post(&open_message(channel_id, 5)).unwrap();
    let close = driver.closes()[0];
    driver
        .post(&GpadlTeardown {
            channel_id,
            gpadl_id: 5,
        })
        .unwrap();
    driver.input(Input::GpadlReleased { offer, gpadl_id: 5 });
    driver.take();
    driver.close_done(close);
    let sent = driver.sent();
    assert_eq!(
        sent[0].body::<OpenChannelResult>().unwrap().status,
        ntstatus::UNSUCCESSFUL
    );
    assert_eq!(sent[1].message_type(), MessageType::GPADL_TORNDOWN);
}

#[test]
fn unknown_and_incomplete_gpadls_are_torn_down_at_once() {
    let mut driver = Driver::connected(Version::IRON);
    let (_, channel_id) = driver.offered(1);
    driver
        .post(&GpadlHeader {
            channel_id,
            gpadl_id: 5,
            len: 24,
            count: 1,
        })
        .unwrap();
    for gpadl_id in [5, 6] {
        let result = driver.post(&GpadlTeardown {
            channel_id,
            gpadl_id,
        });
        assert_eq!(result, Err(Violation::Gpadl(gpadl_id)));
        assert_eq!(driver.reply::<GpadlTorndown>().gpadl_id, gpadl_id);
    }
    assert_eq!(driver.server.usage().gpadls, 0);
    assert_eq!(driver.server.usage().gpadl_bytes, 0);
}

#[test]
fn a_disconnect_forgets_all() {
    let mut driver = Driver::connected(Version::IRON);
    let (_, channel_id) = driver.offered(1);
    driver.gpadl(channel_id, 4, &[1]);
    driver
        .post(&GpadlHeader {
            channel_id,
            gpadl_id: 5,
            len: 24,
            count: 1,
        })
        .unwrap();
    driver.post(&Unload {}).unwrap();
    assert_eq!(
        (
            driver.server.usage().gpadls,
            driver.server.usage().gpadl_bytes
        ),
        (0, 0)
    );
}
