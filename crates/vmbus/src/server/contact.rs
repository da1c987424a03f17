//! InitiateContact: versions, features, and where messages go.

use super::connection::{Connection, Info, Next};
use super::{Effect, Server, Violation};
use crate::protocol::{
    ConnectionState, ControlMessage, FeatureFlags, InitiateContact, MESSAGE_CONNECTION_ID,
    MULTICLIENT_MESSAGE_CONNECTION_ID, TargetInfo, VMBUS_SINT, Version, VersionResponse,
    VersionResponse2,
};
use tlfs::HV_SYNIC_SINT_COUNT;

/// How a contact will be answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct ContactRequest {
    version: Version,
    features: FeatureFlags,
    vp: u32,
    sint: u8,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Connected,
    /// The guest should try a lower version.
    Unsupported,
    Failed,
}

impl Server {
    /// A guest connects; one that was connected before is taken down first,
    /// whether or not this one is answered well.
    pub(super) fn initiate_contact(
        &mut self,
        connection_id: u32,
        bytes: &[u8],
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        let contact: InitiateContact = super::body(bytes)?;
        let request = self.judge_contact(connection_id, &contact);
        self.disconnect(Next::Contact(request), effects);
        let monitors = monitor_pages_match(&contact);
        if monitors {
            Ok(())
        } else {
            Err(Violation::MonitorPages)
        }
    }

    fn judge_contact(&self, connection_id: u32, contact: &InitiateContact) -> ContactRequest {
        let version = Version(contact.version_requested);
        let field = contact.interrupt_page_or_target_info;
        let info = TargetInfo::from_field(field);
        let wanted_vp = if version >= Version::WIN8_1 {
            contact.target_message_vp
        } else {
            0
        };
        let by_target =
            version >= Version::WIN10_RS3_1 && connection_id == MULTICLIENT_MESSAGE_CONNECTION_ID;
        let vtl = if by_target && version >= Version::WIN10_RS4 {
            info.vtl
        } else {
            0
        };
        let wanted_sint = if by_target { info.sint } else { VMBUS_SINT };
        let (vp_exists, sint_exists) = (
            wanted_vp < self.config.processors,
            usize::from(wanted_sint) < HV_SYNIC_SINT_COUNT,
        );
        let features = if version >= Version::COPPER {
            FeatureFlags::from_bits_truncate(info.feature_flags) & FeatureFlags::SUPPORTED
        } else {
            FeatureFlags::empty()
        };
        let outcome = if !version.is_supported() || version > self.config.max_version {
            Outcome::Unsupported
        } else if !vp_exists || !sint_exists || vtl != 0 || !monitor_pages_match(contact) {
            Outcome::Failed
        } else {
            Outcome::Connected
        };
        ContactRequest {
            version,
            features,
            // The answer must go where it can arrive.
            vp: if vp_exists { wanted_vp } else { 0 },
            sint: if sint_exists { wanted_sint } else { VMBUS_SINT },
            outcome,
        }
    }

    pub(super) fn answer_contact(&mut self, request: &ContactRequest, effects: &mut Vec<Effect>) {
        let &ContactRequest {
            version,
            features,
            vp,
            sint,
            outcome,
        } = request;
        let connection_state = match outcome {
            Outcome::Failed => ConnectionState::FAILED_UNKNOWN_FAILURE,
            _ => ConnectionState::SUCCESSFUL,
        };
        let selected = match outcome {
            Outcome::Unsupported => 0,
            _ if version >= Version::WIN10_RS3_1 => MESSAGE_CONNECTION_ID,
            _ => version.0,
        };
        let version_response = VersionResponse {
            version_supported: (outcome != Outcome::Unsupported).into(),
            connection_state,
            padding: 0,
            selected_version_or_connection_id: selected,
        };
        let message = if outcome == Outcome::Connected && version >= Version::COPPER {
            let supported_features = features.bits();
            ControlMessage::new(&VersionResponse2 {
                version_response,
                supported_features,
            })
        } else {
            ControlMessage::new(&version_response)
        };
        if outcome == Outcome::Connected {
            let (offers_requested, paused) = (false, false);
            self.connection = Connection::Connected(Info {
                version,
                features,
                vp,
                sint,
                offers_requested,
                paused,
            });
        }
        effects.push(Effect::Send { vp, sint, message });
    }
}

/// Monitor pages come both or not at all.
fn monitor_pages_match(contact: &InitiateContact) -> bool {
    (contact.parent_to_child_monitor_page_gpa != 0)
        == (contact.child_to_parent_monitor_page_gpa != 0)
}
