//! The channel bus between root and child partitions.
