package caretaker

import (
	"fmt"
	"net/netip"
	"sync"
)

// pool hands out the addresses of one prefix, each to one owner at a time. The first and the last
// address of the prefix stay free, as everywhere.
type pool struct {
	mutex  sync.Mutex
	prefix netip.Prefix
	last   netip.Addr
	owner  map[netip.Addr]string
	holds  map[string]netip.Addr
}

func newPool(prefix netip.Prefix) *pool {
	prefix = prefix.Masked()
	return &pool{
		prefix: prefix,
		last:   prefix.Addr(),
		owner:  map[netip.Addr]string{},
		holds:  map[string]netip.Addr{},
	}
}

// take returns the owner's address, a new one if it has none. It goes round the prefix, so that an
// address that was just given back is the last to be used again.
func (p *pool) take(owner string) (netip.Addr, error) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if address, ok := p.holds[owner]; ok {
		return address, nil
	}
	first := p.prefix.Addr().Next()
	for address, wrapped := p.last.Next(), false; ; address = address.Next() {
		if !p.prefix.Contains(address) || !p.prefix.Contains(address.Next()) {
			if wrapped {
				return netip.Addr{}, fmt.Errorf("all addresses of %s are taken", p.prefix)
			}
			address, wrapped = first, true
		}
		if _, taken := p.owner[address]; !taken {
			p.owner[address], p.holds[owner] = owner, address
			p.last = address
			return address, nil
		}
	}
}

// claim gives the owner exactly this address; false if somebody else holds it or it is outside.
func (p *pool) claim(owner string, address netip.Addr) bool {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if holder, taken := p.owner[address]; taken {
		return holder == owner
	}
	if !p.prefix.Contains(address) {
		return false
	}
	if old, ok := p.holds[owner]; ok {
		delete(p.owner, old)
	}
	p.owner[address], p.holds[owner] = owner, address
	return true
}

// release takes back whatever the owner holds.
func (p *pool) release(owner string) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if address, ok := p.holds[owner]; ok {
		delete(p.holds, owner)
		delete(p.owner, address)
	}
}
