//! The end-to-end harness: the built programs, fresh certificates, real clients, scripted
//! upstreams.
//!
//! A test makes a [`world::World`], which starts the control planes and data planes of this
//! workspace on free ports, connects to them as their users do (curl, a Rust client, raw bytes),
//! and ends them. The demo and the comparison in `bench/compare` use the same parts.
//!
//! Invariant: no sleeps and no fixed ports. Every wait is for an event, and has a bound.

pub mod credentials;
pub mod ports;
pub mod process;
pub mod resources;
pub mod tls;
pub mod upstream;

pub mod admin;
pub mod batches;
pub mod client;
pub mod collector;
pub mod etcd;
pub mod exposition;
pub mod frames;
pub mod peers;
pub mod proxy;
pub mod raw;
pub mod records;
pub mod service;
pub mod shell;
pub mod steady_load;
pub mod tools;

pub mod documents;
pub mod fixtures;
pub mod settings;
pub mod world;

pub mod scripted;

pub mod demo;
