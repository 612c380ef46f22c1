// Package rpc serves what an agent knows of its node as capdrift.v1.AgentService.
//
// Read it in this order: [Service] answers the calls from an [agent.Feed];
// [Server] holds it behind [ListenUnix], [ListenTLS] and [ListenPlaintext];
// ToProto… and FromProto… turn the nouns of package drift into messages and back,
// the latter for clients.
//
// # Promises
//
// A client can make the agent do no more than look once at a time ([Limits]). It
// can hold up neither the feed nor another client: one that does not take its
// messages is cut off and told why. What a client sends is bounded before it is
// read and never trusted, tokens included.
package rpc
