//go:build linux

package cluster

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Addresses inside of the cluster: they are nowhere but in its machines' network namespaces.
var (
	podNetwork     = netip.MustParsePrefix("10.244.0.0/16")
	serviceNetwork = netip.MustParsePrefix("10.96.0.0/16")
	// apiService is the address of the service "kubernetes": the first one.
	apiService = host(serviceNetwork, 1)
)

// machineNetworks is for tests between machines (RFC 2544): no network in earnest has it.
var machineNetworks = netip.MustParsePrefix("198.18.0.0/15")

// freeSubnet is one of the machineNetworks that no interface here has.
func freeSubnet() (netip.Prefix, error) {
	taken, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, third := range rand.Perm(256) {
		base := machineNetworks.Addr().As4()
		base[2] = byte(third)
		subnet := netip.PrefixFrom(netip.AddrFrom4(base), 24)
		free := true
		for _, t := range taken {
			prefix, err := netip.ParsePrefix(t.String())
			free = free && (err != nil || !prefix.Overlaps(subnet))
		}
		if free {
			return subnet, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("every network of %s is in use on this machine", machineNetworks)
}

// host is the nth address of an IPv4 network of at least 256.
func host(network netip.Prefix, n int) netip.Addr {
	b := network.Masked().Addr().As4()
	b[3] = byte(n)
	return netip.AddrFrom4(b)
}

// podSubnet is the network of the pods of the nth node.
func podSubnet(n int) netip.Prefix {
	b := podNetwork.Addr().As4()
	b[2] = byte(n)
	return netip.PrefixFrom(netip.AddrFrom4(b), 24)
}

// inSubnet is an address with its network's size, "198.18.7.11/24".
func inSubnet(a netip.Addr, of netip.Prefix) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(of.Bits(), a.BitLen())}}
}

const bridgeName = "machines"

// interfaceName is that of the cluster's only interface on this machine: "cd-" and what makes the
// folder's name its own.
func (c *Cluster) interfaceName() string {
	name := filepath.Base(c.folder.Path)
	return "cd-" + name[strings.LastIndexByte(name, '-')+1:]
}

// A wire is a network namespace, open for changes.
type wire struct {
	*netlink.Handle
	ns netns.NsHandle
}

func openWire(pid int) (wire, error) {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return wire{}, err
	}
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		ns.Close()
		return wire{}, err
	}
	return wire{h, ns}, nil
}

func (w wire) close() {
	w.Close()
	w.ns.Close()
}

// up gives a link its address and lets it work.
func (w wire) up(name string, address *netlink.Addr) error {
	link, err := w.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if address != nil {
		if err := w.AddrAdd(link, address); err != nil {
			return fmt.Errorf("address %s of %s: %w", address, name, err)
		}
	}
	if err := w.LinkSetUp(link); err != nil {
		return fmt.Errorf("link %s up: %w", name, err)
	}
	return nil
}

// makeBridge makes the network on the machine of the control plane, and hangs this machine on it.
func (c *Cluster) makeBridge() error {
	hub, err := openWire(c.plane.first.Process.Pid)
	if err != nil {
		return err
	}
	defer hub.close()
	if err := hub.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}); err != nil {
		return fmt.Errorf("make bridge: %w", err)
	}
	if err := hub.up(bridgeName, inSubnet(c.plane.address, c.subnet)); err != nil {
		return err
	}
	if err := hub.up("lo", nil); err != nil {
		return err
	}
	here, err := netns.Get()
	if err != nil {
		return err
	}
	defer here.Close()
	if err := hub.hang("outside", c.interfaceName(), here); err != nil {
		return err
	}
	h, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer h.Close()
	return wire{h, here}.up(c.interfaceName(), inSubnet(host(c.subnet, 254), c.subnet))
}

// hang makes a cable from the bridge to a new interface in another namespace. It goes with either end.
func (w wire) hang(name, peer string, in netns.NsHandle) error {
	bridge, err := w.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	err = w.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name, MasterIndex: bridge.Attrs().Index},
		PeerName:  peer, PeerNamespace: netlink.NsFd(in),
	})
	if err != nil {
		return fmt.Errorf("make the interface %s: %w", peer, err)
	}
	return w.up(name, nil)
}

// plug hangs a node on the bridge, which from then on sends to its pods.
func (c *Cluster) plug(n *Node) error {
	hub, err := openWire(c.plane.first.Process.Pid)
	if err != nil {
		return err
	}
	defer hub.close()
	w, err := openWire(n.machine.first.Process.Pid)
	if err != nil {
		return err
	}
	defer w.close()
	if err := hub.hang(n.Name, "eth0", w.ns); err != nil {
		return err
	}
	if err := w.up("lo", nil); err != nil {
		return err
	}
	if err := w.up("eth0", inSubnet(n.machine.address, c.subnet)); err != nil {
		return err
	}
	// What is not on the bridge the control plane's machine knows, or nobody.
	if err := w.RouteAdd(&netlink.Route{Gw: c.plane.address.AsSlice()}); err != nil {
		return fmt.Errorf("default route: %w", err)
	}
	pods := podSubnet(n.number)
	err = hub.RouteReplace(&netlink.Route{
		Dst: &net.IPNet{IP: pods.Addr().AsSlice(), Mask: net.CIDRMask(pods.Bits(), 32)}, Gw: n.machine.address.AsSlice(),
	})
	if err != nil {
		return fmt.Errorf("route to the pods of %s: %w", n.Name, err)
	}
	return nil
}
