//! Changes to the links of a pod, gathered first and carried out in one batch.

use std::io;

use forebay_fabric::plan::Interface;
use netlink_packet_route::RouteNetlinkMessage as Message;

use super::Each;
use super::messages::{Link, address_message, neighbor_message, route_message, shaped, updown};
use super::socket::{Change, Socket};

/// Changes to several devices, each with its device, for one batch.
#[derive(Default)]
pub(super) struct Work {
    pub(super) changes: Vec<Change>,
    owners: Vec<usize>,
    failed: Vec<(usize, io::Error)>,
}

impl Work {
    pub(super) fn add(&mut self, device: usize, what: String, message: Message) {
        self.push(device, what, message, false);
    }

    /// As `add`, of something that may be there already.
    pub(super) fn make(&mut self, device: usize, what: String, message: Message) {
        self.push(device, what, message, true);
    }

    fn push(&mut self, device: usize, what: String, message: Message, makes: bool) {
        self.owners.push(device);
        self.changes.push(Change {
            what,
            message,
            makes,
        });
    }

    pub(super) fn fail(&mut self, device: usize, error: io::Error) {
        self.failed.push((device, error));
    }

    /// The name and sizes of a link of the host.
    pub(super) fn shape(&mut self, device: usize, link: &Link, wanted: &Interface) {
        let now = &link.interface;
        if let Some(message) = shaped(link.index, wanted, now) {
            if now.up && (now.name != wanted.name || now.mac != wanted.mac) {
                // Names and addresses of many links change only while they are down.
                self.add(
                    device,
                    "being down".to_owned(),
                    Message::SetLink(updown(link.index, false)),
                );
            }
            let what = "its name, MTU, address or sizes".to_owned();
            self.add(device, what, Message::SetLink(message));
        }
    }

    /// Addresses, routes and neighbours, and whether it is up.
    pub(super) fn dress(&mut self, device: usize, index: u32, wanted: &Interface) {
        for address in &wanted.addresses {
            let message = Message::NewAddress(address_message(index, *address));
            self.make(device, format!("address {address}"), message);
        }
        let up = updown(index, wanted.up);
        let word = if wanted.up { "being up" } else { "being down" };
        self.add(device, word.to_owned(), Message::SetLink(up));
        if !wanted.up {
            return;
        }
        for route in &wanted.routes {
            let message = Message::NewRoute(route_message(index, route));
            self.make(
                device,
                format!("the route to {}", route.destination),
                message,
            );
        }
        for neighbor in &wanted.neighbors {
            let message = Message::NewNeighbour(neighbor_message(index, neighbor));
            self.make(
                device,
                format!("neighbour {}", neighbor.destination),
                message,
            );
        }
    }

    /// Carries all of it out; what became of each of so many devices.
    pub(super) fn carry_out(self, socket: &mut Socket, devices: usize) -> io::Result<Each> {
        let mut each: Each = (0..devices).map(|_| Ok(())).collect();
        for (at, error) in self.failed {
            each[at] = Err(error);
        }
        for (at, outcome) in self.owners.iter().zip(socket.change(&self.changes)?) {
            // The first refusal is told; others mostly follow from it.
            if each[*at].is_ok() {
                each[*at] = outcome;
            }
        }
        Ok(each)
    }
}
