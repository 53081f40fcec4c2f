//! Volumes and claims: who gets which, what becomes of a volume whose claim is gone, and what is not deleted while it is
//! in use.
//!
//! ```text
//!   PersistentVolumeClaim ──match──▶ PersistentVolume.claimRef ──▶ claim.volumeName ──▶ Bound (both)
//!                                     claim gone ──▶ Released ──▶ kept, or Failed where it should be deleted
//! ```

mod binder;
mod claim;
mod ephemeral;
mod matching;
mod protection;
mod reclaim;
#[cfg(test)]
mod tests;

pub use binder::PersistentVolumeBinder;
pub use ephemeral::EphemeralVolumeController;
pub use protection::{ClaimProtection, VolumeProtection};
